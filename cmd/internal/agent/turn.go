package agent

import (
	"bytes"
	"encoding/json"
	"slices"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

const (
	// turnTimeout is how long a host waits for its turn to change its wireguard key, and for others that say that it is theirs: who says so
	// for longer has died.
	turnTimeout = 15 * time.Second
	// settleSessions is how long after a peer's key changed sessions are not taken to stand again; settleWithin is how long that is
	// waited for, since the peer may be away.
	settleSessions = 300 * time.Millisecond
	settleWithin   = 5 * time.Second
)

// inTurn is the end of the data of a lease whose host waits for its turn, or has it. Two hosts that change their keys at the same moment
// would each lose what it keeps for the other's key of before: so who wants to says so, and waits for those whose leases said it
// before, by etcd's revisions.
var inTurn = []byte(`,"Rotating":true}`)

// markTurn adds that to the data of an endpoint.
func markTurn(data json.RawMessage) json.RawMessage { return slices.Concat(data[:len(data)-1], inTurn) }

func hasTurn(l subnet.Lease) bool {
	return l.Backend == backend.WireGuard &&
		slices.ContainsFunc(l.Endpoints, func(e subnet.Endpoint) bool { return bytes.HasSuffix(e.Data, inTurn) })
}

// takeTurn has the host say that it wants to change its key.
func (a *Agent) takeTurn() error {
	if err := a.mayRotate(); err != nil {
		return err
	}
	a.planner.rotating = true
	a.advertise()
	return nil
}

// leaveTurn has it say so no more.
func (a *Agent) leaveTurn() error {
	if a.planner != nil && a.planner.rotating {
		a.planner.rotating = false
		a.advertise()
	}
	return nil
}

// noteTurns takes in which peers have a turn, and returns those, by lease key, that tell of another wireguard key than before.
func (a *Agent) noteTurns(peers map[string]*subnet.Record) (rekeyed []string) {
	for key, peer := range peers {
		switch before := a.peers[key]; {
		case peer == nil:
			delete(a.turns, key)
		case hasTurn(peer.Lease):
			if a.turns[key].IsZero() {
				a.turns[key] = time.Now()
			}
		default:
			delete(a.turns, key)
			if before != nil && peer.Backend == backend.WireGuard && before.Backend == peer.Backend &&
				publicKey(before.Lease) != publicKey(peer.Lease) {
				rekeyed = append(rekeyed, key)
				a.rekeyed[key] = time.Now()
			}
		}
	}
	return rekeyed
}

func publicKey(l subnet.Lease) string {
	var d struct{ PublicKey string }
	for _, e := range l.Endpoints {
		_ = json.Unmarshal(e.Data, &d) // what makes no sense has none
	}
	return d.PublicKey
}

// myTurn says whether nobody changes a key before the host, as far as etcd knew when its lease said that it wants to.
func (a *Agent) myTurn() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	own := a.latest.Own.Record
	if a.planner == nil || !a.planner.saidBy(own.Lease) || a.latest.Revision < own.ModRevision {
		return false
	}
	for key, since := range a.rekeyed {
		if !a.settledWith(key, since) {
			return false
		}
		delete(a.rekeyed, key)
	}
	for key, since := range a.turns {
		if p := a.peers[key]; p != nil && p.ModRevision < own.ModRevision && time.Since(since) < turnTimeout {
			return false
		}
	}
	return true
}

// settledWith says whether the session with a peer stands again whose key changed then.
func (a *Agent) settledWith(key string, since time.Time) bool {
	peer, age := a.peers[key], time.Since(since)
	if peer == nil || a.own == nil || age > settleWithin {
		return true
	}
	_, objs, _ := a.planner.peer(a.own.Lease, peer.Lease, a.isNear, true)
	sessions := a.cfg.Kernel.Sessions()
	return age >= settleSessions && !slices.ContainsFunc(objs, func(o kernel.Object) bool {
		w, ok := o.(kernel.WGPeer)
		return ok && sessions[w.ID()].Handshake.Before(since)
	})
}
