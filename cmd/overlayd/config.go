package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// shortestTTL leaves etcd's clients time for a few renewals over a network that loses packets.
const shortestTTL = 10 * time.Second

// config is what overlayd was told, checked for sense.
type config struct {
	etcd       etcdstore.Config
	prefix     string          // of the network in etcd
	networks   []string        // that are joined besides; none: there is one
	allOf      bool            // whichever networks there are
	embedded   bool            // serve etcd
	listen     string          // address for the hosts; empty: none
	network    []byte          // config to write where there is none; nil: none
	pin        *subnet.Network // the same
	selector   underlay.Selector
	masquerade bool
	guard      firewall.Guard // its parts
	policy     enforce.Options
	fastPath   api.FastPathMode
	leaseTTL   time.Duration
	runDir     string
	subnetFile string
	stateDir   string
	http       string
	joinListen string
	hostName   string
	log        *slog.Logger
	level      *slog.LevelVar // of log

	source   source          // of all this
	told     settings.Daemon // the settings as they were read
	declared *pflag.FlagSet  // the same by name
}

func newConfig(d settings.Daemon, from settings.Sources, stderr io.Writer) (*config, error) {
	d.UseEmbedded(from)
	c := &config{
		etcd:       d.Etcd.Config,
		prefix:     d.Etcd.Prefix,
		selector:   underlay.Selector{Ifaces: d.Iface, Regexes: d.IfaceRegex, CanReach: d.IfaceReach},
		masquerade: d.IPMasq,
		leaseTTL:   d.LeaseTTL,
		runDir:     d.RunDir,
		subnetFile: d.SubnetPath(),
		stateDir:   d.StateDir,
		http:       d.HTTP,
		joinListen: d.JoinListen,
		level:      new(slog.LevelVar),
	}
	c.level.Set(d.LogLevel)
	var err error
	if c.log, err = newLogger(stderr, c.level, d.LogFormat); err != nil {
		return nil, from.Wrap("log-format", err)
	}
	if c.hostName, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("host name: %w", err)
	}
	c.embedded, c.listen = d.EtcdEmbedded, d.EtcdEmbeddedListen
	return c, errors.Join(c.checkEmbedded(d, from), c.checkJoin(from), c.setNetwork(d, from), c.setNetworks(d, from), c.setPublicIPs(d, from),
		c.checkRegexes(from), c.setGuard(d, from), c.setPolicy(d, from), c.setFastPath(d, from), c.checkTTL(from))
}

// checkEmbedded refuses an embedded etcd that everybody could write to: one that is not encrypted, or only encrypted.
func (c *config) checkEmbedded(d settings.Daemon, from settings.Sources) error {
	switch {
	case !c.embedded:
	case c.etcd.CertFile != "" && c.etcd.CAFile == "":
		return from.Wrap("etcd-certfile", errors.New("the embedded etcd needs --etcd-cafile too, to know whose hosts to let in"))
	case c.etcd.CertFile == "" && c.listen != "" && !d.EtcdEmbeddedInsecure:
		return from.Wrap("etcd-embedded-listen", fmt.Errorf("without certificates who reaches %s can take any subnet: let overlayctl init make "+
			"them, or set etcd-cafile, etcd-certfile and etcd-keyfile; etcd-embedded-insecure: true serves all the same", c.listen))
	}
	return nil
}

// checkJoin refuses to let hosts join where there is nothing to sign with, or no etcd to let them into.
func (c *config) checkJoin(from settings.Sources) error {
	if c.joinListen == "" {
		return nil
	}
	if !c.embedded || c.listen == "" || !enrol.Renews(c.stateDir, c.etcd.CertFile) {
		return from.Wrap("join-listen", errors.New("hosts join where etcd is embedded and \"overlayctl init\" has made the certificates"))
	}
	if _, _, err := net.SplitHostPort(c.joinListen); err != nil {
		return from.Wrap("join-listen", err)
	}
	return nil
}

func (c *config) setNetwork(d settings.Daemon, from settings.Sources) error {
	if d.Network == "" {
		return nil
	}
	raw, err := subnet.NetworkJSON(d.Network)
	if err != nil {
		return from.Wrap("network", err)
	}
	n, err := subnet.ParseNetwork(raw)
	if err != nil {
		return from.Wrap("network", err)
	}
	if err := backend.Validate(n); err != nil {
		return from.Wrap("network", err)
	}
	c.network, c.pin = raw, &n
	return nil
}

// setNetworks takes names as they are given, each once.
func (c *config) setNetworks(d settings.Daemon, from settings.Sources) error {
	for _, name := range d.Networks {
		if name == "all" {
			c.allOf = true
			continue
		}
		if err := subnet.ValidNetworkName(name); err != nil {
			return from.Wrap("networks", err)
		}
		if !slices.Contains(c.networks, name) {
			c.networks = append(c.networks, name)
		}
	}
	if c.allOf && len(c.networks) > 0 {
		return from.Wrap("networks", fmt.Errorf("all is said, and %s besides: say all, or names", c.networks[0]))
	}
	return nil
}

// several says whether the host may be in several networks.
func (c *config) several() bool { return c.allOf || len(c.networks) > 0 }

func (c *config) setPublicIPs(d settings.Daemon, from settings.Sources) error {
	if ip := d.PublicIP; ip.IsValid() {
		if !ip.Is4() {
			return from.Wrap("public-ip", fmt.Errorf("%s is not an IPv4 address; use --public-ipv6 for it", ip))
		}
		c.selector.PublicIPs = append(c.selector.PublicIPs, ip)
	}
	if ip := d.PublicIPv6; ip.IsValid() {
		if !ip.Is6() || ip.Is4In6() {
			return from.Wrap("public-ipv6", fmt.Errorf("%s is not an IPv6 address; use --public-ip for it", ip))
		}
		c.selector.PublicIPs = append(c.selector.PublicIPs, ip)
	}
	return nil
}

// checkRegexes looks at them now, because the interface is looked for only when there is a network.
func (c *config) checkRegexes(from settings.Sources) error {
	for _, expr := range c.selector.Regexes {
		if _, err := regexp.Compile(expr); err != nil {
			return from.Wrap("iface-regex", err)
		}
	}
	return nil
}

func (c *config) setGuard(d settings.Daemon, from settings.Sources) error {
	parts := map[string]*bool{"tunnel": &c.guard.Tunnel, "overlay": &c.guard.Overlay, "containers": &c.guard.Containers}
	for _, name := range d.Guard {
		if parts[name] == nil {
			return from.Wrap("guard", fmt.Errorf("%q is none of tunnel, overlay and containers", name))
		}
		*parts[name] = true
	}
	return nil
}

func (c *config) setPolicy(d settings.Daemon, from settings.Sources) error {
	c.policy = enforce.Options{Unready: enforce.Unready(d.Unready), LogDenied: d.LogDenied}
	switch c.policy.Unready {
	case enforce.Closed, enforce.Open, enforce.Fail:
		return nil
	}
	return from.Wrap("policy-unready", fmt.Errorf("%q is none of closed, open and fail", d.Unready))
}

func (c *config) setFastPath(d settings.Daemon, from settings.Sources) (err error) {
	if c.fastPath, err = api.ParseFastPathMode(d.FastPath); err != nil {
		return from.Wrap("fast-path", err)
	}
	return nil
}

func (c *config) checkTTL(from settings.Sources) error {
	if c.leaseTTL < shortestTTL {
		return from.Wrap("lease-ttl", fmt.Errorf("%s is too short: at least %s", c.leaseTTL, shortestTTL))
	}
	return nil
}

// findHost looks at the host as it is now, for the families that n has.
func (c *config) findHost(n subnet.Network, inUse []netip.Addr, state *agent.State) (agent.Host, error) {
	s := c.selector
	s.InUse = inUse
	return agent.FindHost(n, s, state)
}
