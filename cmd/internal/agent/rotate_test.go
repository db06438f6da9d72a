package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

const wireGuardConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"O7RYP6oqKzAKeY1ngUFMb1vlGyNTgM2WKKCMRELs2UA="}}`

// newWireGuardRig is an agent in a network of wireguard, whose etcd answers as asked says.
func newWireGuardRig(t *testing.T, asked func() error) *rig {
	t.Helper()
	r := newRig(t, t.TempDir())
	r.cfg.AskEtcd = func(context.Context) error { return asked() }
	r.host = func() (Host, error) {
		h := testHost("172.30.0.11")
		err := r.cfg.State.needWireGuard(kernel.Secret{})
		h.WireGuard = r.cfg.State.WireGuard
		return h, err
	}
	return r
}

// wireGuardPeer is a peer with a key.
func wireGuardPeer(key kernel.WGKey) *subnet.Record {
	p := record("10.5.73.0/24", "172.30.0.12", "wireguard", 0)
	p.Endpoints[0].Data = json.RawMessage(fmt.Sprintf(`{"PublicKey":"%s","Port":51820}`, key))
	return p
}

// told has etcd take what the host last advertised.
func (r *rig) told(t *testing.T, config string) {
	t.Helper()
	u := news(t, config, nil)
	said := r.member.said()
	u.Own.Record.Backend = said[len(said)-1].Backend
	u.Own.Record.Endpoints[0].Data = said[len(said)-1].Endpoints[0].Data
	u.Own.Record.Endpoints[0].PublicIP = said[len(said)-1].Endpoints[0].PublicIP
	r.member.tell(u)
}

// oblige has etcd take all that the host advertises, until the test ends.
func (r *rig) oblige(t *testing.T, config string) {
	t.Helper()
	ctx, n := t.Context(), len(r.member.said())
	go func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			if said := r.member.said(); len(said) > n {
				n = len(said)
				r.told(t, config)
			}
		}
	}()
}

// Another key is on the link before etcd has it, on disk before that, and said once etcd has it; not twice in a moment.
func TestRotate(t *testing.T) {
	t.Parallel()
	r := newWireGuardRig(t, func() error { return nil })
	r.start(t)
	r.member.tell(news(t, wireGuardConfig, nil))
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	s := r.Status()
	if s.WireGuard == nil || strings.Contains(s.Network, "O7RYP6") || !strings.Contains(s.Network, "[removed]") {
		t.Fatalf("status: wireguard %+v, network %s", s.WireGuard, s.Network)
	}
	before := s.WireGuard.PublicKey
	done := make(chan error, 1)
	var key string
	go func() { // its turn
		eventually(t, "the host says that it wants to", func() bool { return len(r.member.said()) == 2 })
		if said := r.member.said()[1]; !hasTurn(said) || !strings.Contains(string(said.Endpoints[0].Data), before) {
			t.Errorf("the host said %s", said.Endpoints[0].Data)
		}
		r.told(t, wireGuardConfig)
	}()
	go func() { var err error; key, err = r.RotateWireGuard(t.Context(), ""); done <- err }()
	eventually(t, "peers are told", func() bool {
		said := r.member.said()
		return len(said) > 1 && !strings.Contains(string(said[len(said)-1].Endpoints[0].Data), before)
	})
	select {
	case err := <-done:
		t.Errorf("it returned before etcd had the key: %v", err)
	default:
	}
	file, err := os.ReadFile(r.Status().WireGuard.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := kernel.ParseSecret(string(file))
	if err != nil || r.Status().WireGuard.PublicKey != secret.Public().String() {
		t.Errorf("the file has another key, or %v", err)
	}
	r.told(t, wireGuardConfig)
	if err := <-done; err != nil || key != secret.Public().String() || key == before {
		t.Errorf("RotateWireGuard() = %q, %v; the file's is %q, and it was %q", key, err, secret.Public(), before)
	}
	if _, err := r.RotateWireGuard(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "has just changed") {
		t.Errorf("at once again: %v", err)
	}
}

// Where other hosts could not hear of another key, or it cannot be kept, all stays as it is.
func TestRotateRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		config string
		change func(*rig)
		asked  error
		want   string
	}{
		"etcd is away":   {config: wireGuardConfig, asked: errors.New("etcd cannot be reached"), want: "nothing was changed: etcd cannot be reached"},
		"not wireguard":  {config: vxlanConfig, want: "in no network of wireguard"},
		"as remembered":  {config: wireGuardConfig, change: func(r *rig) { r.latest.Remembered = true }, want: "nothing was changed"},
		"lease not held": {config: wireGuardConfig, change: func(r *rig) { r.latest.Own.State = etcdstore.Taken }, want: "nothing was changed"},
		"disk":           {config: wireGuardConfig, change: func(r *rig) { r.cfg.State.dir = filepath.Join(r.dir, "gone") }, want: "nothing was changed: state directory: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newWireGuardRig(t, func() error { return test.asked })
			r.start(t)
			r.member.tell(news(t, test.config, nil))
			eventually(t, "the host is ready", func() bool { return r.Status().Ready })
			said := len(r.member.said())
			r.meddle(func() {
				if test.change != nil {
					test.change(r)
				}
			})
			before := r.cfg.State.WireGuard
			if test.change != nil && name == "disk" {
				r.oblige(t, test.config)
			}
			_, err := r.RotateWireGuard(t.Context(), "")
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("RotateWireGuard() = %v, want a line with %q", err, test.want)
			}
			if r.cfg.State.WireGuard != before || len(r.member.said()) != said && name != "disk" {
				t.Error("something is half done")
			}
			if all := r.member.said(); hasTurn(all[len(all)-1]) {
				t.Error("it is still its turn")
			}
		})
	}
}

// meddle changes what the loop knows.
func (r *rig) meddle(f func()) {
	r.Agent.mu.Lock()
	defer r.Agent.mu.Unlock()
	f()
}

// A peer that tells of another key is greeted, for it cannot begin: we did not know it by that key.
func TestGreetsRekeyedPeers(t *testing.T) {
	t.Parallel()
	r := newWireGuardRig(t, func() error { return nil })
	r.start(t)
	const key = "10.5.73.0-24"
	first, second := kernel.NewSecret().Public(), kernel.NewSecret().Public()
	r.member.tell(news(t, wireGuardConfig, map[string]*subnet.Record{key: wireGuardPeer(first)}))
	eventually(t, "the peer is known", func() bool { return len(r.kernel.objects(key)) > 0 })
	r.member.tell(news(t, wireGuardConfig, map[string]*subnet.Record{key: wireGuardPeer(second)}))
	want := []kernel.WGPeerID{{Link: kernel.WireGuardName, Key: second}}
	eventually(t, "it is greeted", func() bool {
		r.kernel.mu.Lock()
		defer r.kernel.mu.Unlock()
		return slices.Equal(r.kernel.greeted, want)
	})
	if objs := strings.Join(r.kernel.objects(key), "\n"); strings.Contains(objs, first.String()) || strings.Contains(objs, "O7RYP6") {
		t.Errorf("objects: %s", objs)
	}
}

// Of hosts that want to change their keys the one whose lease said so first is first; one that died is not waited for for ever.
func TestTurns(t *testing.T) {
	t.Parallel()
	r := newWireGuardRig(t, func() error { return nil })
	r.start(t)
	const key = "10.5.73.0-24"
	theirs := kernel.NewSecret().Public()
	other := wireGuardPeer(theirs)
	other.Endpoints[0].Data = markTurn(other.Endpoints[0].Data)
	other.ModRevision = 5
	r.member.tell(news(t, wireGuardConfig, map[string]*subnet.Record{key: other}))
	eventually(t, "the peer is known", func() bool { return len(r.kernel.objects(key)) > 0 })
	r.told(t, wireGuardConfig)
	for _, test := range []struct {
		revision int64
		want     bool
	}{
		{4, true}, // first, because only who has taken in what etcd was told has a turn: from here on latest is ours to change
		{6, false},
		{8, false}, // more may have been said before than is known
	} {
		r.meddle(func() { r.latest.Own.Record.ModRevision, r.latest.Revision = test.revision, 7 })
		eventually(t, fmt.Sprintf("at revision %d its turn: %t", test.revision, test.want), func() bool { return r.myTurn() == test.want })
	}
	r.meddle(func() { r.latest.Own.Record.ModRevision = 6; r.turns[key] = time.Now().Add(-turnTimeout) })
	if !r.myTurn() {
		t.Error("a host that says nothing more is waited for")
	}
	id := kernel.WGPeerID{Link: kernel.WireGuardName, Key: theirs}
	for _, test := range []struct {
		what       string
		ago        time.Duration // since the peer changed its key
		shook      time.Duration // before that, the last handshake
		want, left bool
	}{
		{"just now", 0, -time.Second, false, true},
		{"with no handshake since", time.Second, time.Second, false, true},
		{"with a handshake since", time.Second, -time.Millisecond, true, false},
		{"with none for long", settleWithin + time.Second, time.Second, true, false},
	} {
		since := time.Now().Add(-test.ago)
		r.meddle(func() { r.rekeyed[key] = since })
		r.kernel.mu.Lock()
		r.kernel.sessions = map[kernel.WGPeerID]kernel.Session{id: {Handshake: since.Add(-test.shook)}}
		r.kernel.mu.Unlock()
		if got := r.myTurn(); got != test.want {
			t.Errorf("a peer that changed its key %s: its turn is %t", test.what, got)
		}
		if _, left := r.rekeyed[key]; left != test.left {
			t.Errorf("a peer that changed its key %s: waited for is %t", test.what, left)
		}
	}
}
