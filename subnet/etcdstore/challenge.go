package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

const (
	// answerWithin is how long a host that is asked whether it lives has for the answer.
	answerWithin = 3 * time.Second
	// askAgain is when a host that was told to stay away asks once more.
	askAgain = 10 * time.Second
	// challengeTTL ends the keys of challenges.
	challengeTTL = 60
)

// A lease in etcd does not tell whether its host lives: that may have been gone for most of a day. Before a host writes
// what only one of two may say, their address or their identity, it asks the other under <prefix>/overlayd/challenges/,
// and a host that lives answers. Nobody asks who comes back as he was.

// challenge is a question to another host whether it lives.
type challenge struct {
	rival  rival
	nonce  string
	until  time.Time // when the other's silence, or its answer, counts no more
	heard  bool      // the question was answered
	answer string    // to this question or the one before; empty: there is none
}

// rival is a host that the own lease would be in the way of.
type rival struct {
	hostID string // empty: there is none
	clone  bool   // it has the host's own identity
}

// challengeValue is what etcd holds of a challenge.
type challengeValue struct {
	Nonce  string `json:"nonce"`
	By     string `json:"by"`
	Answer string `json:"answer,omitempty"`
}

func (s *Store) challengePrefix() string { return s.prefix + "/overlayd/challenges/" }

// findRival says whom to ask before the own lease says what the host wants.
func (m *Member) findRival(wish subnet.Lease) rival {
	there, l := m.own.owner(wish)
	ourWrite := m.own.had && m.own.modRevision() == m.own.lastHeld.ModRevision
	if there == ours && l.HostID == wish.HostID && m.own.value.LeaseID != 0 && !ourWrite && !sameAddresses(l, leaseFor(wish, m.own.subnets)) {
		return rival{wish.HostID, true}
	}
	for key := range m.twins {
		if r, ok := m.set.Get(key); ok && r.HostID != "" && r.LeaseID != 0 && sharesAddress(r.Lease, wish) {
			return rival{hostID: r.HostID}
		}
	}
	return rival{}
}

// mayWrite says whether nobody who lives is in the way of the own lease; if it is not known yet, it asks.
func (m *Member) mayWrite(ctx context.Context, client *clientv3.Client) (bool, error) {
	c := &m.challenge
	found := m.findRival(m.wishLease())
	switch over := !time.Now().Before(c.until); {
	case found.hostID == "":
		*c = challenge{}
		return true, nil
	case c.rival != found || over && c.heard:
		return false, m.ask(ctx, client, found)
	case !over:
		m.retry = c.until
		return false, nil
	}
	c.answer = ""
	for key := range m.twins { // who does not live is no trouble
		if r, ok := m.set.Get(key); ok && r.HostID == found.hostID {
			delete(m.twins, key)
		}
	}
	return true, nil
}

// ask asks a rival whether it lives.
func (m *Member) ask(ctx context.Context, client *clientv3.Client, r rival) error {
	ctx, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	lease, err := client.Grant(ctx, challengeTTL)
	if err != nil {
		return m.refused(err)
	}
	next := challenge{rival: r, nonce: rand.Text()}
	if m.challenge.rival == r {
		next.answer = m.challenge.answer // until the other's silence shows that it is gone
	} else {
		m.log.Info("asking whether a host lives that this one would be in the way of", "hostID", r.hostID)
	}
	value, err := json.Marshal(challengeValue{Nonce: next.nonce, By: nameOf(m.wishLease())})
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, m.store.challengePrefix()+r.hostID, string(value), clientv3.WithLease(lease.ID)); err != nil {
		return m.refused(err)
	}
	next.until = time.Now().Add(answerWithin)
	m.challenge, m.retry = next, next.until
	return nil
}

// hear takes in a challenge, or the answer to one.
func (m *Member) hear(hostID string, kv *mvccpb.KeyValue, gone bool) {
	var v challengeValue
	if gone || json.Unmarshal(kv.Value, &v) != nil || v.Nonce == "" {
		return
	}
	switch {
	case v.Nonce == m.challenge.nonce && v.Answer != "":
		m.challenge.heard, m.challenge.answer = true, v.Answer
		m.challenge.until = time.Now().Add(askAgain)
		m.retry = time.Time{}
	case v.Nonce != m.challenge.nonce && v.Answer == "" && hostID == m.cfg.HostID && m.own.state == Held:
		m.toAnswer = &v
	}
}

// answer tells who asked that this host lives.
func (m *Member) answer(ctx context.Context, client *clientv3.Client) error {
	v := m.toAnswer
	if v == nil {
		return nil
	}
	m.toAnswer = nil
	m.metrics.failed(kindTwin)
	m.log.Warn("another host wants this one's address or identity", "host", v.By)
	v.Answer = nameOf(m.own.lastHeld.Lease)
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	key := m.store.challengePrefix() + m.cfg.HostID
	if _, err := client.Put(ctx, key, string(value), clientv3.WithIgnoreLease()); err != nil {
		return m.refused(err)
	}
	return nil
}

// obstacle says why the own lease does not say what the host wants; empty: nothing is in its way.
func (c challenge) obstacle() string {
	switch {
	case c.answer == "" && !time.Now().Before(c.until):
		return ""
	case c.answer == "":
		return fmt.Sprintf("asking whether host %s lives", c.rival.hostID)
	case c.rival.clone:
		return fmt.Sprintf("%s runs with this host's identity: if this host is a copy of that one, stop overlayd, remove its state directory and start it again", c.answer)
	}
	return fmt.Sprintf("%s has this host's address: give one of them another one (--public-ip)", c.answer)
}

// challengeKey returns the host that a key under challenges/ asks.
func (s *Store) challengeKey(key string) (hostID string, ok bool) {
	return strings.CutPrefix(key, s.challengePrefix())
}
