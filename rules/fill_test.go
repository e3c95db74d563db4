package rules_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"curfew/internal/netnstest"
	"curfew/rules"
)

func TestFill(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	if err := h.Do(func() error { _, _, err := rules.Fill(); return err }); !errors.Is(err, rules.ErrNotInstalled) {
		t.Errorf("without a table: %v", err)
	}
	in(t, h, func() error { return rules.Apply(config(t)) })
	var elements []string
	for port := range 1234 {
		elements = append(elements, fmt.Sprintf("10.0.0.1 . %d . 10.0.0.2 . 389 timeout 1h", port+1))
	}
	nft(t, h, fmt.Sprintf("add element inet curfew flows4 { %s }\nadd element inet curfew flows6 { fd00::1 . 1 . fd00::2 . 389 timeout 1h }",
		strings.Join(elements, ", ")), "-f", "-")
	in(t, h, func() error {
		if flows4, flows6, err := rules.Fill(); err != nil || flows4 != 1234 || flows6 != 1 {
			t.Errorf("%d and %d flows, %v", flows4, flows6, err)
		}
		return nil
	})
}
