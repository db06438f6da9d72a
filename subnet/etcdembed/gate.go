package etcdembed

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/overlayd/overlayd/subnet/who"
)

// gate stands before etcd's services and lets nobody who shows a certificate do more than that says. Who comes by the unix
// socket, and an operator, may do everything; a host may read the network, and change what is its own.
type gate struct {
	prefix  string // of the network, with its final slash
	log     *slog.Logger
	refused *prometheus.CounterVec // by what was refused
	hosts   admitted
	etcd    atomic.Pointer[etcdserver.EtcdServer] // nil: it does not serve yet
}

// What is refused, as the metric overlayd_etcd_refusals_total names it.
const (
	refusedHost    = "host"    // whoever it is, its certificate does not count any more
	refusedService = "service" // a request that only operators may make
	refusedRead    = "read"
	refusedWrite   = "write"
	refusedLease   = "lease" // etcd's own
)

func newGate(cfg Config) *gate {
	g := &gate{prefix: strings.TrimRight(cfg.Prefix, "/") + "/", log: cfg.Log}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.refused = promauto.With(cfg.Registerer).NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_etcd_refusals_total",
		Help: "Requests to the embedded etcd that their sender may not make, by what it is that was refused.",
	}, []string{"what"})
	for _, what := range []string{refusedHost, refusedService, refusedRead, refusedWrite, refusedLease} {
		g.refused.WithLabelValues(what)
	}
	return g
}

// options have etcd ask the gate.
func (g *gate) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(g.unary), grpc.ChainStreamInterceptor(g.stream)}
}

// refusal is why a request is refused, in one line that says who, what and why. Its gRPC status is PermissionDenied.
type refusal struct{ what, text string }

func (r refusal) Error() string { return r.text }

// GRPCStatus is what the client gets.
func (r refusal) GRPCStatus() *status.Status { return status.New(codes.PermissionDenied, r.text) }

// onlyOperators ends what is said of a request that hosts may not make.
const onlyOperators = "only operators may: by overlayctl on etcd's host, or with an operator's certificate"

// tell counts and logs a refusal.
func (g *gate) tell(err error) error {
	if r, ok := errors.AsType[refusal](err); ok {
		g.refused.WithLabelValues(r.what).Inc()
		g.log.Warn("refused a request to etcd", "err", r)
	}
	return err
}

// caller is who sends a request.
type caller struct {
	who.Who
	until  time.Time       // the certificate's end
	member context.Context // ends when the host is not of the network any more, with a refusal
}

// caller says who it is; an error if it may do nothing.
func (g *gate) caller(ctx context.Context) (caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}, refusal{refusedHost, "who comes from nowhere may do nothing"}
	}
	if p.Addr.Network() == "unix" {
		return caller{Who: who.Who{Name: "unix socket", Operator: true}}, nil
	}
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	if len(info.State.VerifiedChains) == 0 {
		return caller{}, refusal{refusedHost, fmt.Sprintf("who comes from %s without a certificate may do nothing", p.Addr)}
	}
	cert := info.State.VerifiedChains[0][0]
	w, err := who.Parse(cert)
	if err != nil {
		return caller{}, refusal{refusedHost, err.Error()}
	}
	c := caller{Who: w, until: cert.NotAfter, member: context.Background()}
	if time.Now().After(c.until) {
		return c, ended(w, cert)
	}
	if w.Operator {
		return c, nil
	}
	// What an older overlayctl was told to issue for no address: its host is where it comes from.
	if from, err := netip.ParseAddrPort(p.Addr.String()); err == nil && w.Host == "" && len(w.IPs) == 0 {
		c.IPs = []netip.Addr{from.Addr().Unmap()}
	}
	c.member, err = g.hosts.membership(w)
	return c, err
}

// ended is the refusal of a certificate that was good when the connection was made.
func ended(w who.Who, cert *x509.Certificate) refusal {
	return refusal{refusedHost, fmt.Sprintf("%s may do nothing: its certificate ended at %s", w, cert.NotAfter.UTC().Format(time.RFC3339))}
}

// unary decides about a request.
func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	c, err := g.caller(ctx)
	if err != nil {
		return nil, g.tell(err)
	}
	if c.Operator {
		return handle(ctx, req)
	}
	if op := operation(req); op != nil {
		got, err := g.write(ctx, c, op, info.Server.(pb.KVServer))
		if got != nil || err != nil {
			return got, g.tell(err)
		}
	} else if err := g.permit(ctx, c, info.FullMethod, req); err != nil {
		return nil, g.tell(err)
	}
	return handle(ctx, req)
}

// stream decides about each message of a stream, and ends it when its host is not of the network any more.
func (g *gate) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	c, err := g.caller(s.Context())
	if err != nil {
		return g.tell(err)
	}
	if c.Operator {
		return handle(srv, s)
	}
	ctx, end := context.WithCancelCause(s.Context())
	defer end(nil)
	defer context.AfterFunc(c.member, func() { end(context.Cause(c.member)) })()
	defer time.AfterFunc(time.Until(c.until), func() {
		end(refusal{refusedHost, c.String() + " may do nothing: its certificate has ended"})
	}).Stop()
	err = handle(srv, &gated{s, ctx, func(m any) error {
		err := g.permit(ctx, c, info.FullMethod, m)
		if err != nil {
			end(err) // first, so that etcd takes it for the client's going away, and says nothing
		}
		return err
	}})
	if why := context.Cause(ctx); why != nil && s.Context().Err() == nil {
		return g.tell(why)
	}
	return err
}

// gated is a stream of which each message that comes in is permitted first.
type gated struct {
	grpc.ServerStream
	ctx    context.Context
	permit func(any) error
}

func (s *gated) Context() context.Context { return s.ctx }

func (s *gated) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.permit(m)
}

// permit says why a host may not send a message, of those that write no keys.
func (g *gate) permit(ctx context.Context, c caller, method string, m any) error {
	switch m := m.(type) {
	case *pb.RangeRequest:
		return g.read(c, m.Key, m.RangeEnd)
	case *pb.WatchRequest:
		if r := m.GetCreateRequest(); r != nil {
			return g.read(c, r.Key, r.RangeEnd)
		}
		return nil
	case *pb.LeaseGrantRequest:
		return grant(c, m)
	case *pb.LeaseKeepAliveRequest:
		return g.lease(ctx, c, m.ID, nil)
	case *pb.LeaseRevokeRequest:
		return g.lease(ctx, c, m.ID, nil)
	case *pb.LeaseTimeToLiveRequest: // overlayctl shows when leases end; their keys may be an operator's
		if m.Keys {
			return g.lease(ctx, c, m.ID, nil)
		}
		return nil
	case *pb.StatusRequest, *pb.MemberListRequest: // hosts follow the members
		return nil
	}
	return refusal{refusedService, fmt.Sprintf("%s may not call %s: %s", c, strings.TrimPrefix(method, "/"), onlyOperators)}
}

// read says why a host may not read a range: it may read the network, but not the tokens by which others join. A range that
// ends at a zero byte has no end, as etcd means it.
func (g *gate) read(c caller, key, end []byte) error {
	from, to := string(key), string(end)
	if to == "" {
		to = from + "\x00"
	}
	tokens := g.prefix + "overlayd/tokens/"
	if from >= g.prefix && to != "\x00" && to <= after(g.prefix) && (to <= tokens || from >= after(tokens)) {
		return nil
	}
	return refusal{refusedRead, fmt.Sprintf("%s may not read %.100q to %.100q: only what is below %s, without %s",
		c, key, end, g.prefix, tokens)}
}

// after is the end of the range of all keys that begin with a prefix that ends in a slash.
func after(prefix string) string { return prefix[:len(prefix)-1] + string('/'+1) }

// has says whether addresses are all the caller's own, and there are any.
func (c caller) has(addrs []netip.Addr) bool {
	return len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(c.IPs, a) })
}
