package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/who"
)

// hello tells who may join, or has, how the network is.
func (s *Server) hello(ctx context.Context, r *http.Request, q hello) (g Greeting, err error) {
	if len(q.Key) != sha256.Size {
		return g, refuse(http.StatusBadRequest, "the key's fingerprint has %d bytes", len(q.Key))
	}
	if q.Token != nil {
		_, _, err = s.check(ctx, r, *q.Token, q.Key)
	} else {
		_, err = s.renewer(ctx, r)
	}
	if err != nil {
		return g, err
	}
	from, now := addrOf(remote(r)), time.Now()
	g = Greeting{
		Address: from, Now: now, Prefix: s.cfg.Prefix, Endpoints: s.cfg.Endpoints(local(r)),
		Ticket: s.tickets.issue(q.Key, from, now),
	}
	raw, _, err := s.cfg.Store.Network(ctx)
	if err != nil && !errors.Is(err, etcdstore.ErrNoNetwork) {
		return g, err
	}
	if json.Valid(raw) {
		g.Network = raw
	}
	return g, nil
}

// check is the token that a host shows, if it lets it in. Again says that it has let in this very key before: the host was
// interrupted before it had the answer.
func (s *Server) check(ctx context.Context, r *http.Request, c credential, key []byte) (t TokenRecord, again bool, err error) {
	from := addrOf(remote(r))
	if !s.guard.allows(from) {
		why := fmt.Sprintf("too many wrong tokens from %s: try again in a minute", from)
		return t, false, refusal{http.StatusTooManyRequests, "too many wrong secrets", why}
	}
	t, err = s.token(ctx, c)
	if no, ok := errors.AsType[refusal](err); ok && no.code == http.StatusUnauthorized {
		s.guard.wrong(ctx, from)
	}
	if err != nil {
		return t, false, err
	}
	state := t.State(time.Now())
	if state == "used up" {
		hosts, err := Hosts(ctx, s.cfg.Store)
		if err != nil {
			return t, false, err
		}
		again = slices.ContainsFunc(hosts, func(h HostRecord) bool { return h.Token == t.ID && h.Key == hex.EncodeToString(key) })
	}
	if state != "" && !again {
		return t, false, refuse(http.StatusForbidden, "the token %s is %s: %s", t.ID, state, anotherToken)
	}
	return t, again, nil
}

// anotherToken is what to do about one that is of no use.
const anotherToken = `"overlayctl tokens create" on a host that runs etcd makes a new one`

// token is the one that a host shows, if the secret is right.
func (s *Server) token(ctx context.Context, c credential) (t TokenRecord, err error) {
	wrong := refusal{http.StatusUnauthorized, "wrong secret", "the token is wrong, or ended long ago: " + anotherToken}
	if !isWord(c.ID) || !isWord(c.Secret) {
		return t, wrong
	}
	d, err := s.cfg.Store.Document(ctx, tokenKind, c.ID)
	if err != nil {
		return t, err
	}
	if d.Revision == 0 {
		return t, wrong
	}
	if t, err = decode[TokenRecord](tokenKind, d); err != nil {
		return t, err
	}
	if !t.matches(c.Secret) {
		return t, wrong
	}
	t.ID = c.ID
	return t, nil
}

// use takes uses of a token, or gives them back.
func (s *Server) use(ctx context.Context, id string, n int) error {
	return change(ctx, s.cfg.Store, tokenKind, id, func(t *TokenRecord) error {
		if state := t.State(time.Now()); n > 0 && state != "" { // another member was faster
			return refuse(http.StatusForbidden, "the token %s is %s", id, state)
		}
		t.Used += n
		return nil
	})
}

// join makes a host's first certificate, or the first after the last has ended.
func (s *Server) join(ctx context.Context, r *http.Request, q joinRequest) (issued, error) {
	key, err := certs.RequestedKey(q.Request)
	if err != nil {
		return issued{}, refuse(http.StatusBadRequest, "%v", err)
	}
	fingerprint, err := keyFingerprint(key)
	if err != nil {
		return issued{}, err
	}
	token, again, err := s.check(ctx, r, q.Token, fingerprint)
	if err != nil {
		return issued{}, err
	}
	if q.Member && (!token.Member || s.cfg.Admit == nil) {
		return issued{}, refuse(http.StatusForbidden, "the token %s lets hosts join, and not run etcd: \"overlayctl tokens create --member\" "+
			"on a host that runs it makes one that does", token.ID)
	}
	s.mu.Lock() // not before: wrong secrets wait
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return issued{}, ctx.Err()
	}
	// What is begun for a host that goes away now is ended all the same: it comes again with the same key, and a use of its
	// token that etcd has taken in would be lost if that was not heard.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTime)
	defer cancel()
	d, record, err := s.place(ctx, r, q, fingerprint)
	if err != nil {
		return issued{}, err
	}
	record.Member = q.Member // whatever it was before
	if !again {
		if err := s.use(ctx, token.ID, 1); err != nil {
			return issued{}, err
		}
	}
	record.Token = token.ID
	answer, err := s.sign(ctx, r, key, q.Tickets, d, record)
	if err != nil {
		if !again {
			err = errors.Join(err, s.use(context.WithoutCancel(ctx), token.ID, -1))
		}
		return issued{}, err
	}
	s.cfg.Log.Info("a host has joined", "host", record.Name, "hostID", d.Name, "from", addrOf(remote(r)), "token", token.ID)
	s.requests.WithLabelValues("joined").Inc()
	if q.Member {
		if answer.Authority, err = s.cfg.Authority.Bundle(); err != nil {
			return issued{}, err
		}
		s.cfg.Admit(addrOf(remote(r)))
	}
	return answer, nil
}

// place is the record of the host that wants to join: it must be nobody else's, and what is its own it gets for its key.
func (s *Server) place(
	ctx context.Context, r *http.Request, q joinRequest, key []byte,
) (d etcdstore.Document, record HostRecord, err error) {
	if !isWord(q.Host) {
		return d, record, refuse(http.StatusBadRequest, "%q is not a host's id", q.Host)
	}
	d, record = etcdstore.Document{Name: q.Host}, HostRecord{Joined: time.Now().UTC().Truncate(time.Second)}
	all, err := s.cfg.Store.Documents(ctx, hostKind)
	if err != nil {
		return d, record, err
	}
	for _, other := range all {
		known, err := decode[HostRecord](hostKind, other)
		switch {
		case err != nil:
			return d, record, err
		case other.Name == q.Host:
			cert := s.shown(r)
			if known.Key != hex.EncodeToString(key) && (cert == nil || holder(cert).Host != q.Host) {
				return d, record, refuse(http.StatusConflict, "this host has joined already, as %s, and does not show the certificate that it had then: "+
					"if that is lost, \"overlayctl hosts remove %s\" on a host that runs etcd, and join again", known.Name, other.Name)
			}
			d, record = other, known
		case known.Name == q.Name:
			return d, record, refuse(http.StatusConflict, "another host has joined as %s: join with another --name, or, "+
				"if that host is gone, \"overlayctl hosts remove %s\" on a host that runs etcd", known.Name, other.Name)
		}
	}
	record.Name = q.Name
	return d, record, nil
}

// renew makes the next certificate of who shows one that is in force. It says what that one says, but for the addresses.
func (s *Server) renew(ctx context.Context, r *http.Request, q renewRequest) (issued, error) {
	key, err := certs.RequestedKey(q.Request)
	if err != nil {
		return issued{}, refuse(http.StatusBadRequest, "%v", err)
	}
	d, err := s.renewer(ctx, r)
	if err != nil {
		return issued{}, err
	}
	record, err := decode[HostRecord](hostKind, d)
	if err != nil {
		return issued{}, err
	}
	answer, err := s.sign(ctx, r, key, q.Tickets, d, record)
	if err == nil {
		s.requests.WithLabelValues("renewed").Inc()
	}
	return answer, err
}

// renewer is the record of the host whose certificate the client shows.
func (s *Server) renewer(ctx context.Context, r *http.Request) (d etcdstore.Document, err error) {
	cert := s.shown(r)
	if cert == nil || holder(cert).Host == "" {
		return d, refuse(http.StatusUnauthorized, "no certificate of this network was shown: join with a token")
	}
	if now := time.Now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return d, refuse(http.StatusUnauthorized, "the certificate was valid until %s, and it is %s here: "+
			"join again with a token; nothing else is lost",
			cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	d, err = s.cfg.Store.Document(ctx, hostKind, holder(cert).Host)
	if err == nil && d.Revision == 0 {
		err = refuse(http.StatusForbidden, "the host %s was removed from the network: join again with a token", holder(cert).Name)
	}
	return d, err
}

// shown is the certificate that the client has proved to be its own, if this CA signed it, may it have ended; else nil.
func (s *Server) shown(r *http.Request) *x509.Certificate {
	if len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	cert := r.TLS.PeerCertificates[0]
	if cert.CheckSignatureFrom(s.cfg.Authority.Certificate()) != nil {
		return nil
	}
	return cert
}

// sign makes the certificate, and notes in the host's record that it did. Whatever the request asks for, the certificate is
// for the record's host, and for the addresses that it has spoken from.
func (s *Server) sign(
	ctx context.Context, r *http.Request, key *ecdsa.PublicKey, tickets []string, d etcdstore.Document, record HostRecord,
) (issued, error) {
	now, addrs := time.Now(), []netip.Addr{addrOf(remote(r))}
	fingerprint, err := keyFingerprint(key)
	if err != nil {
		return issued{}, err
	}
	for _, t := range tickets[:min(len(tickets), maxTickets)] {
		if ip, ok := s.tickets.address(fingerprint, t, now); ok && !slices.Contains(addrs, ip) {
			addrs = append(addrs, ip)
		}
	}
	w := who.Who{Host: d.Name, Name: record.Name, Member: record.Member, IPs: addrs}
	cert, err := s.cfg.Authority.Sign(key, w, now, s.cfg.Life)
	if err != nil {
		return issued{}, refuse(http.StatusBadRequest, "%v", err)
	}
	record.Addresses, record.Serial, record.Key = addrs, cert.SerialNumber.Text(16), hex.EncodeToString(fingerprint)
	if err := put(ctx, s.cfg.Store, hostKind, d, record, 0); err != nil {
		return issued{}, err
	}
	return issued{Certificate: cert.Raw, CA: s.cfg.Authority.Certificate().Raw}, nil
}

// maxTickets is how many addresses a certificate may be for, beside the one that asks: as many as a host has underlays.
const maxTickets = 8

// keyFingerprint is what a ticket names a key by.
func keyFingerprint(key *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	sum := sha256.Sum256(der)
	return sum[:], err
}
