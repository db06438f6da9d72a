package enrol

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/who"
)

// maxPause is the longest wait between attempts to renew.
const maxPause = time.Hour

// Renewer replaces a host's certificate at two thirds of its life, and when the host has another address.
type Renewer struct {
	StateDir string
	Etcd     func() []string     // its endpoints, as URLs
	Addrs    func() []netip.Addr // by which the host meets others, as they are now; none: not known yet
	Life     time.Duration       // of certificates that the host signs itself; 0: [Life]
	Log      *slog.Logger

	mu       sync.Mutex
	err      error // of the last attempt
	from, to time.Time
	tried    []netip.Addr               // addresses for which the last certificate was asked, whether it is for them or not
	pause    time.Duration              // after the last attempt, if that failed
	local    func() ([]net.Addr, error) // nil: net.InterfaceAddrs
}

// Renews says whether the daemon looks after the certificate in a file: whether it is the one of a state directory.
func Renews(stateDir, certFile string) bool {
	return certFile == filepath.Join(stateDir, HostFile)
}

// Err is why the certificate is not renewed, from when half of what was left for it has gone by.
func (r *Renewer) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil || time.Until(r.to) > r.to.Sub(r.from)/6 {
		return nil
	}
	return fmt.Errorf("the certificate that ends on %s cannot be renewed: %w", r.to.UTC().Format(time.RFC3339), r.err)
}

// Run renews until ctx ends.
func (r *Renewer) Run(ctx context.Context) error {
	spread := rand.Float64() / 30 // hosts that joined together need not come together
	for {
		wait, err := r.step(ctx, spread)
		if err != nil && ctx.Err() == nil {
			r.Log.Warn("the certificate is not renewed yet", "err", err)
		}
		r.mu.Lock()
		r.err = err
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// step renews if it is time, and returns when to look again.
func (r *Renewer) step(ctx context.Context, spread float64) (time.Duration, error) {
	file := filepath.Join(r.StateDir, HostFile)
	pair, err := LoadPair(file)
	if err != nil {
		return time.Minute, err
	}
	r.mu.Lock()
	r.from, r.to = pair.Leaf.NotBefore, pair.Leaf.NotAfter
	r.mu.Unlock()
	life, addrs := r.to.Sub(r.from), r.Addrs()
	if len(addrs) == 0 {
		addrs = holder(pair.Leaf).IPs
	}
	due := r.to.Add(-life/3 + time.Duration(spread*float64(life)))
	look := min(10*time.Second, life/60)
	moved := slices.ContainsFunc(addrs, func(ip netip.Addr) bool {
		return !slices.Contains(holder(pair.Leaf).IPs, ip) && !slices.Contains(r.tried, ip)
	})
	early := time.Now().Before(r.from) // it was made while a clock was ahead
	if !moved && !early && time.Now().Before(due) {
		return look, nil
	}
	r.tried = addrs
	if err := r.renew(ctx, pair, addrs); err != nil {
		r.tried = nil
		r.pause = min(maxPause, max(look, 2*r.pause))
		return r.pause/2 + rand.N(r.pause), err
	}
	r.pause = 0
	r.Log.Info("the certificate was renewed", "was valid until", r.to.UTC())
	return look, nil
}

// renew gets another certificate: by the host's own CA if it has one, else from the first endpoint that gives one.
func (r *Renewer) renew(ctx context.Context, pair tls.Certificate, addrs []netip.Addr) error {
	files, err := OpenFiles(r.StateDir)
	if err != nil {
		return err
	}
	defer files.Root.Close()
	authority, err := certs.ReadAuthority(filepath.Join(r.StateDir, AuthorityFile))
	switch {
	case err == nil:
		return r.sign(files, authority, holder(pair.Leaf), addrs)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	ca, err := certs.Read(filepath.Join(r.StateDir, CAFile))
	if err != nil {
		return err
	}
	key, err := certs.NewKey()
	if err != nil {
		return err
	}
	var errs []error
	for _, endpoint := range r.endpoints() {
		c := Client{Addr: endpoint, CA: certs.Fingerprint(ca), Certificate: &pair}
		v, err := c.Visit(ctx, nil, key, addrs)
		if err == nil {
			err = loses(v, pair.Leaf)
		}
		if err == nil {
			var next Issued
			if next, err = v.Renew(ctx, holder(pair.Leaf).Host); err == nil {
				_, err = files.Write(HostFile, next.Bundle, 0o400)
				return err
			}
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return errors.New("no host that runs etcd is known")
	}
	return errors.Join(errs...)
}

// loses says that the next certificate would not be for an address that the last one is for, so that the host's lease would be
// refused there. A way that is broken today may be whole tomorrow: it is an error as long as there is time.
func loses(v *Visit, last *x509.Certificate) error {
	if time.Until(last.NotAfter) < last.NotAfter.Sub(last.NotBefore)/6 {
		return nil
	}
	for _, u := range v.Unproven {
		if slices.Contains(holder(last).IPs, u.Addr) {
			return u
		}
	}
	return nil
}

// sign is for a host that signs: it needs nobody, and comes back from any sleep. What the last certificate was for stays while
// the host has it: others may reach etcd there, by whatever the network knows the host.
func (r *Renewer) sign(files Files, ca certs.Authority, w who.Who, addrs []netip.Addr) error {
	look := r.local
	if look == nil {
		look = net.InterfaceAddrs
	}
	there, err := look()
	if err != nil {
		return err
	}
	last := w.IPs
	w.IPs = slices.Clone(addrs)
	for _, a := range there {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, _ := netip.AddrFromSlice(n.IP); slices.Contains(last, ip.Unmap()) && !slices.Contains(w.IPs, ip.Unmap()) {
			w.IPs = append(w.IPs, ip.Unmap())
		}
	}
	next, err := ca.Issue(w, time.Now(), cmp.Or(r.Life, Life))
	if err == nil {
		_, err = files.Write(HostFile, next, 0o400)
	}
	return err
}

// endpoints are where to ask: where the host joined, and on the hosts that run etcd.
func (r *Renewer) endpoints() (all []string) {
	if at, err := subnet.ReadFile(filepath.Join(r.StateDir, JoinedFile)); err == nil {
		all = append(all, strings.TrimSpace(string(at)))
	}
	for _, raw := range r.Etcd() {
		if u, err := url.Parse(raw); err == nil && u.Hostname() != "" {
			all = append(all, net.JoinHostPort(u.Hostname(), DefaultPort))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
