package rules

import (
	"errors"
	"fmt"
)

// Remove deletes the table. It answers ErrNotInstalled when there is none, and ErrForeign when
// it is not ours.
func Remove() error {
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return err
	}
	if _, err := readNotes(conn); err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("delete table inet curfew: %w", explainPermission(err))
	}
	return nil
}
