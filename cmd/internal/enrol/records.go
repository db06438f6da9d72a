package enrol

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// Kinds of documents in etcd.
const (
	tokenKind = "tokens"
	hostKind  = "hosts"
)

// remembered is how long an ended token is known as such, before it is unknown.
const remembered = 7 * 24 * time.Hour

// Documents is where tokens and hosts are kept, see [etcdstore.Store].
type Documents interface {
	Documents(ctx context.Context, kind string) ([]etcdstore.Document, error)
	Document(ctx context.Context, kind, name string) (etcdstore.Document, error)
	PutDocument(ctx context.Context, kind string, d etcdstore.Document, life time.Duration) error
	DeleteDocument(ctx context.Context, kind, name string) error
}

// TokenRecord is what etcd holds of a token.
type TokenRecord struct {
	ID      string    `json:"-"`
	Hash    string    `json:"hash"` // SHA-256 of the secret, in hex
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"` // how many hosts may join by it; 0: any number
	Used    int       `json:"used"` // how many have
	Member  bool      `json:"member"`
	Revoked bool      `json:"revoked,omitempty"`
	Made    time.Time `json:"made"`
}

// State is why a token lets nobody in, in a word; empty: it does.
func (t TokenRecord) State(now time.Time) string {
	switch {
	case t.Revoked:
		return "revoked"
	case !now.Before(t.Expires):
		return "ended"
	case t.Uses != 0 && t.Used >= t.Uses:
		return "used up"
	}
	return ""
}

// HostRecord is a host that has joined. While it is there, etcd lets in who shows a certificate for the host's id.
type HostRecord struct {
	ID        string       `json:"-"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Joined    time.Time    `json:"joined"`
	Serial    string       `json:"serial"` // of the last certificate, in hex
	Key       string       `json:"key"`    // fingerprint of the key that it is for, in hex
	Token     string       `json:"token"`  // the id of the one by which the host joined last
	Member    bool         `json:"member"`
}

// CreateToken makes a token that ends after life, for as many hosts as r.Uses says; 0: any number. With r.Member they may also
// become members of etcd, and are given the CA's key.
func CreateToken(ctx context.Context, s Documents, ca [sha256.Size]byte, now time.Time, life time.Duration, r TokenRecord) (Token, error) {
	t := NewToken(ca)
	r.Hash, r.Expires, r.Made = hash(t.Secret), now.Add(life).UTC().Truncate(time.Second), now.UTC().Truncate(time.Second)
	return t, put(ctx, s, tokenKind, etcdstore.Document{Name: t.ID}, r, life+remembered)
}

// Tokens lists all tokens, by id.
func Tokens(ctx context.Context, s Documents) ([]TokenRecord, error) {
	return list(ctx, s, tokenKind, func(r *TokenRecord, name string) { r.ID = name })
}

// RevokeToken ends a token at once. The error wraps [ErrUnknown] if there is none of the id.
func RevokeToken(ctx context.Context, s Documents, id string) error {
	return change(ctx, s, tokenKind, id, func(r *TokenRecord) error { r.Revoked = true; return nil })
}

// Hosts lists the hosts that have joined, by id.
func Hosts(ctx context.Context, s Documents) ([]HostRecord, error) {
	return list(ctx, s, hostKind, func(r *HostRecord, name string) { r.ID = name })
}

// RemoveHost takes a host its right to etcd and to a new certificate.
func RemoveHost(ctx context.Context, s Documents, id string) error {
	return s.DeleteDocument(ctx, hostKind, id)
}

// ErrUnknown says that there is no such token or host.
var ErrUnknown = errors.New("there is none")

// tries is how often a change is made anew because somebody else was faster.
const tries = 20

// change reads a record, has f change it and writes it, until nobody has changed it meanwhile.
func change[R any](ctx context.Context, s Documents, kind, name string, f func(*R) error) error {
	for try := 1; ; try++ {
		d, err := s.Document(ctx, kind, name)
		if err != nil {
			return err
		}
		if d.Revision == 0 {
			return fmt.Errorf("%s/%s: %w", kind, name, ErrUnknown)
		}
		r, err := decode[R](kind, d)
		if err != nil {
			return err
		}
		if err := f(&r); err != nil {
			return err
		}
		if err = put(ctx, s, kind, d, r, 0); !errors.Is(err, etcdstore.ErrConflict) || try == tries {
			return err
		}
	}
}

func list[R any](ctx context.Context, s Documents, kind string, name func(*R, string)) (all []R, err error) {
	found, err := s.Documents(ctx, kind)
	if err != nil {
		return nil, err
	}
	for _, d := range found {
		r, err := decode[R](kind, d)
		if err != nil {
			return nil, err
		}
		name(&r, d.Name)
		all = append(all, r)
	}
	return all, nil
}

func decode[R any](kind string, d etcdstore.Document) (r R, err error) {
	if err = json.Unmarshal(d.Value, &r); err != nil {
		err = fmt.Errorf("overlayd/%s/%s in etcd: %w", kind, d.Name, err)
	}
	return r, err
}

func put(ctx context.Context, s Documents, kind string, d etcdstore.Document, r any, life time.Duration) (err error) {
	if d.Value, err = json.Marshal(r); err != nil {
		return err
	}
	return s.PutDocument(ctx, kind, d, life)
}

// matches compares a secret with what etcd holds of it, in a time that says nothing.
func (t TokenRecord) matches(secret string) bool {
	return subtle.ConstantTimeCompare([]byte(t.Hash), []byte(hash(secret))) == 1
}
