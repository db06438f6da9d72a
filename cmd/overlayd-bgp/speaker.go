package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

const (
	// retryConnect is between two attempts to reach a router, in seconds.
	retryConnect = 5
	// deferral is how long one that has restarted waits for what routers have to say, in seconds: nothing of that matters here.
	deferral = 1
	// holdTime is after how many seconds of silence a session is over: RFC 4271 proposes 90.
	holdTime = 90
)

// speaker speaks BGP with the routers. It takes no routes from them.
type speaker struct {
	cfg config
	log *slog.Logger
	bgp *server.BgpServer

	changed func() // is called after a session came or went

	mu        sync.Mutex
	announced routes
	sessions  map[netip.Addr]session
}

// session is what is known of that with a router.
type session struct {
	State  string    `json:"state"` // as RFC 4271 has it, lower case
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"` // why the last one ended
}

const established = "established"

// newSpeaker begins to speak, but to nobody yet.
func newSpeaker(cfg config, log *slog.Logger) (*speaker, error) {
	s := &speaker{cfg: cfg, log: log, changed: func() {}, announced: routes{}, sessions: map[netip.Addr]session{}}
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	s.bgp = server.NewBgpServer(server.LoggerOption(slog.New(quiet{log.Handler()}), level))
	go s.bgp.Serve()
	ctx := context.Background()
	err := s.bgp.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: cfg.AS, RouterId: cfg.RouterID.String(), ListenPort: -1, // routers are called, and call nobody
	}})
	if err != nil {
		return nil, fmt.Errorf("start BGP: %w", err)
	}
	return s, s.ownRoutes(ctx)
}

// ownRoutes has no route be taken from one router and told to another: what is announced is this speaker's own.
func (s *speaker) ownRoutes(ctx context.Context) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := s.bgp.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return fmt.Errorf("take no routes: %w", err)
	}
	both := []api.PolicyDirection{api.PolicyDirection_POLICY_DIRECTION_IMPORT, api.PolicyDirection_POLICY_DIRECTION_EXPORT}
	for _, direction := range both {
		err := s.bgp.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: "global", Direction: direction, Policies: []*api.Policy{own}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
		}})
		if err != nil {
			return fmt.Errorf("take no routes: %w", err)
		}
	}
	return nil
}

// quiet has GoBGP's warnings and errors in the log: it tells of each step at other levels.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }

// call begins to speak with the routers. What is announced until then they hear at once.
func (s *speaker) call(ctx context.Context) error {
	down := make(chan netip.Addr, len(s.cfg.Neighbors))
	note := func(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
		if e.Type == apiutil.PEER_EVENT_STATE && s.note(e.Peer.State, at) {
			down <- e.Peer.State.NeighborAddress
		}
	}
	if err := s.bgp.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnPeerUpdate: note}, server.WatchPeer()); err != nil {
		return fmt.Errorf("watch sessions: %w", err)
	}
	go s.renew(ctx, down)
	for _, n := range s.cfg.Neighbors {
		s.mu.Lock()
		s.sessions[n.Address] = session{State: "idle", Since: time.Now()}
		s.mu.Unlock()
		if err := s.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(n)}); err != nil {
			return fmt.Errorf("neighbor %s: %w", n.Address, err)
		}
	}
	return nil
}

// renew makes a neighbor anew whose session is over. GoBGP says in the first session alone that what was announced before is
// still so (the F bit of RFC 4724): in the next ones routers would forget it first, and then hear it again.
func (s *speaker) renew(ctx context.Context, down <-chan netip.Addr) {
	for {
		var addr netip.Addr
		select {
		case <-ctx.Done():
			return
		case addr = <-down:
		}
		for _, n := range s.cfg.Neighbors {
			if n.Address != addr {
				continue
			}
			if err := s.bgp.DeletePeer(ctx, &api.DeletePeerRequest{Address: addr.String()}); err != nil {
				s.log.Warn("cannot end a session", "router", addr, "err", err)
			}
			if err := s.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(n)}); err != nil {
				s.log.Error("cannot begin a session", "router", addr, "err", err)
			}
		}
	}
}

// peer is a router as GoBGP has it.
func (s *speaker) peer(n neighbor) *api.Peer {
	p := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: n.Address.String(), PeerAsn: n.AS, AuthPassword: n.password},
		Transport: &api.Transport{RemotePort: uint32(n.Port)},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: retryConnect, IdleHoldTimeAfterReset: 1, HoldTime: holdTime, KeepaliveInterval: holdTime / 3,
		}},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(s.cfg.RestartTime), DeferralTime: deferral, LocalRestarting: true,
		},
	}
	if n.Source.IsValid() {
		p.Transport.LocalAddress = n.Source.String()
	}
	if n.Hops > 0 {
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(n.Hops)}
	}
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
	}
	return p
}

// note takes in the state of a session, and says whether one that stood is over.
func (s *speaker) note(p apiutil.PeerState, at time.Time) (over bool) {
	state := stateNames[p.SessionState]
	s.mu.Lock()
	before := s.sessions[p.NeighborAddress]
	now := session{State: state, Since: at, Reason: before.Reason}
	if before.State == established && state != established {
		over, now.Reason = true, p.DisconnectMessage
	}
	s.sessions[p.NeighborAddress] = now
	s.mu.Unlock()
	switch {
	case over:
		s.log.Warn("session is over", "router", p.NeighborAddress, "why", now.Reason)
	case state == established:
		s.log.Info("session is established", "router", p.NeighborAddress)
	}
	if over || state == established {
		s.changed()
	}
	return over
}

var stateNames = map[bgp.FSMState]string{
	bgp.BGP_FSM_IDLE: "idle", bgp.BGP_FSM_CONNECT: "connect", bgp.BGP_FSM_ACTIVE: "active",
	bgp.BGP_FSM_OPENSENT: "opensent", bgp.BGP_FSM_OPENCONFIRM: "openconfirm", bgp.BGP_FSM_ESTABLISHED: established,
}

// announce makes r what is announced, at the cost of what changed.
func (s *speaker) announce(r routes) error {
	s.mu.Lock()
	before := s.announced
	s.announced = maps.Clone(r)
	s.mu.Unlock()
	var add, gone []*apiutil.Path
	for dst, hop := range r {
		if before[dst] != hop {
			add = append(add, path(dst, hop))
		}
	}
	for dst, hop := range before {
		if _, still := r[dst]; !still {
			gone = append(gone, path(dst, hop))
		}
	}
	if len(add) > 0 {
		if _, err := s.bgp.AddPath(apiutil.AddPathRequest{Paths: add}); err != nil {
			return fmt.Errorf("announce %d routes: %w", len(add), err)
		}
	}
	if len(gone) > 0 {
		if err := s.bgp.DeletePath(apiutil.DeletePathRequest{Paths: gone}); err != nil {
			return fmt.Errorf("withdraw %d routes: %w", len(gone), err)
		}
	}
	return nil
}

// path is a route as GoBGP has it. Its prefix and address are valid, and of one family, so that nothing fails.
func path(dst netip.Prefix, hop netip.Addr) *apiutil.Path {
	nlri, _ := bgp.NewIPAddrPrefix(dst)
	p := &apiutil.Path{Family: bgp.RF_IPv4_UC, Nlri: nlri, Attrs: []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0)}}
	if dst.Addr().Is4() {
		via, _ := bgp.NewPathAttributeNextHop(hop)
		p.Attrs = append(p.Attrs, via)
		return p
	}
	p.Family = bgp.RF_IPv6_UC
	reach, _ := bgp.NewPathAttributeMpReachNLRI(bgp.RF_IPv6_UC, []bgp.PathNLRI{{NLRI: nlri}}, hop)
	p.Attrs = append(p.Attrs, reach)
	return p
}
