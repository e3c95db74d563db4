package ctpolicy

import (
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

// ldap is a policy with nothing wrong.
func ldap() Policy {
	return Policy{Name: "ldap", Ports: []PortRange{{389, 389}, {636, 636}}, MaxAge: time.Hour}
}

func TestValidateAccepts(t *testing.T) {
	for name, change := range map[string]func(*Policy){
		"as it is":      func(*Policy) {},
		"idle only":     func(p *Policy) { p.MaxAge, p.Idle = 0, time.Minute },
		"both":          func(p *Policy) { p.Idle = time.Minute },
		"longest":       func(p *Policy) { p.MaxAge, p.Idle = MaxLimit, MaxLimit },
		"shortest":      func(p *Policy) { p.MaxAge, p.Idle = time.Second, time.Second },
		"one letter":    func(p *Policy) { p.Name = "x" },
		"all sorts":     func(p *Policy) { p.Name = "Az9_.-" },
		"32 characters": func(p *Policy) { p.Name = strings.Repeat("x", 32) },
	} {
		p := ldap()
		change(&p)
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	for _, c := range []struct {
		change func(*Policy)
		want   string
	}{
		{func(p *Policy) { p.Name = "" }, `name ""`},
		{func(p *Policy) { p.Name = "9lives" }, `name "9lives" must start with a letter`},
		{func(p *Policy) { p.Name = "-x" }, `name "-x"`},
		{func(p *Policy) { p.Name = "a b" }, `name "a b"`},
		{func(p *Policy) { p.Name = "a\n" }, `name "a\n"`},
		{func(p *Policy) { p.Name = `a"b` }, `name "a\"b"`},
		{func(p *Policy) { p.Name = "münchen" }, `name "münchen"`},
		{func(p *Policy) { p.Name = strings.Repeat("x", 33) }, "at most 32 characters"},
		{func(p *Policy) { p.Ports = nil }, "no port given"},
		{func(p *Policy) { p.MaxAge = 0 }, "no limit given"},
		{func(p *Policy) { p.MaxAge = -time.Second }, "max_age -1s: must be more than 0"},
		{func(p *Policy) { p.Idle = 1500 * time.Millisecond }, "idle 1.5s: must be whole seconds"},
		{func(p *Policy) { p.Idle = MaxLimit + time.Second }, "must be at most 365d"},
	} {
		p := ldap()
		c.change(&p)
		wantErrors(t, p.Validate(), c.want)
	}
}

// wantErrors checks that a joined error has exactly these lines, each with its text.
func wantErrors(t *testing.T, err error, want ...string) {
	t.Helper()
	var lines []string
	if err != nil {
		lines = strings.Split(err.Error(), "\n")
	}
	if len(lines) != len(want) {
		t.Errorf("got %d errors, want %d: %v", len(lines), len(want), err)
		return
	}
	for i, line := range lines {
		if !strings.Contains(line, want[i]) {
			t.Errorf("got %q, want %q in it", line, want[i])
		}
	}
}

func TestValidateTellsAllAtOnce(t *testing.T) {
	wantErrors(t, (&Policy{Name: "?"}).Validate(), `name "?"`, "no port given", "no limit given")
	wantErrors(t, (&Policy{Name: "x", Ports: []PortRange{{1, 1}}, MaxAge: -time.Second, Idle: time.Millisecond}).Validate(),
		"max_age -1s", "idle 1ms")

	web := Policy{Name: "web", Ports: []PortRange{{80, 90}}, MaxAge: time.Hour}
	web2 := Policy{Name: "web", Ports: []PortRange{{8080, 8080}}, MaxAge: time.Hour}
	alt := Policy{Name: "alt", Ports: []PortRange{{1, 10}, {88, 8080}}, MaxAge: time.Hour}
	wantErrors(t, Validate([]Policy{ldap(), web}))
	wantErrors(t, Validate(nil))
	wantErrors(t, Validate([]Policy{ldap(), web, web2, {Name: "none", Ports: []PortRange{{7, 7}}}, alt}),
		`policy "web": another policy has this name`,
		`policy "none": no limit given`)
}

func TestLimitsRoundTrip(t *testing.T) {
	for _, c := range []struct {
		p    Policy
		want string
	}{
		{Policy{MaxAge: time.Hour}, "max_age 1h"},
		{Policy{Idle: 10 * time.Minute}, "idle 10m"},
		{Policy{MaxAge: 36 * time.Hour, Idle: time.Second}, "max_age 1d12h, idle 1s"},
		{Policy{Idle: time.Second, Direction: Forwarded}, "idle 1s, direction forwarded"},
	} {
		if got := c.p.String(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 3))
	for range 2000 {
		limits := [3]time.Duration{}
		for i := range limits {
			limits[i] = time.Second * time.Duration(1+rnd.Int64N(int64(MaxLimit/time.Second)))
		}
		limits[rnd.IntN(3)] = 0 // one of the two, or neither
		p := Policy{MaxAge: limits[0], Idle: limits[1], Direction: []Direction{Any, Inbound, Outbound, Forwarded}[rnd.IntN(4)]}
		if p.MaxAge+p.Idle == 0 {
			continue
		}
		got, err := ParseLimits(p.String())
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("%q is %v, %v", p.String(), got, err)
		}
	}
}

func TestParseLimitsRefuses(t *testing.T) {
	for _, text := range []string{"", "max_age", "max_age 0s", "age 1h", "max_age 1h,idle 5m", "max_age 1h, ", "1h", "max_age 1h, direction up"} {
		if got, err := ParseLimits(text); err == nil || got.MaxAge != 0 || got.Idle != 0 {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
}

func TestLead(t *testing.T) {
	for _, c := range []struct{ maxAge, idle, want time.Duration }{
		{time.Hour, 0, 10 * time.Minute},
		{20 * time.Minute, 0, 10 * time.Minute},
		{3 * time.Second, 0, 1500 * time.Millisecond},
		{time.Second, 0, 1500 * time.Millisecond},
		{time.Hour, time.Minute, 30 * time.Second},
		{time.Minute, time.Hour, 30 * time.Second},
		{0, 4 * time.Second, 2 * time.Second},
		{0, MaxLimit, 10 * time.Minute},
	} {
		p := Policy{MaxAge: c.maxAge, Idle: c.idle}
		if got := p.Lead(); got != c.want {
			t.Errorf("%v: got %v, want %v", &p, got, c.want)
		}
	}
}
