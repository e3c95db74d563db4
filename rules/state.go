package rules

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
)

// settleAttempts is how often others may change their rules under it.
const settleAttempts = 20

// settle notes what the table is after a change of ours, so that one by somebody else can be told from it.
func settle() error {
	digest, err := Digest()
	for try := 1; errors.Is(err, ErrInterrupted) && try < settleAttempts; try++ {
		digest, err = Digest()
	}
	if err != nil {
		return err
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	state := &nftables.Chain{Name: chainState, Table: table}
	conn.FlushChain(state)
	conn.AddRule(&nftables.Rule{Table: table, Chain: state, Exprs: leave().exprs, UserData: comment(digest)})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("note the state of table inet curfew: %w", explainPermission(err))
	}
	return nil
}

// Sound tells that the table is as curfew left it when it was read. A curfew that is changing it right now leaves it
// unsound for a moment.
func (in *Installed) Sound() (bool, error) {
	digest, err := Digest()
	return err == nil && in.state == digest, err
}

func (in *Installed) readState(conn *nftables.Conn) error {
	notes, err := comments(conn, chainState)
	if len(notes) == 1 {
		in.state = notes[0]
	}
	return err
}
