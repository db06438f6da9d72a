package etcdembed

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/features"
)

// peerURL names the member to itself. Nothing listens there: a single member has no peers.
const peerURL = "http://127.0.0.1:0"

// serverConfig is etcd's configuration for a single member.
func serverConfig(cfg Config, listen []url.URL) *embed.Config {
	ec := embed.NewConfig()
	ec.Name = cmp.Or(cfg.Name, "overlayd")
	ec.Dir = filepath.Join(cfg.Dir, "data")
	ec.ListenClientUrls = listen
	ec.AdvertiseClientUrls = listen[:1]
	ec.ListenPeerUrls = nil
	ec.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	ec.InitialCluster = ec.Name + "=" + peerURL
	ec.InitialClusterToken = token()
	ec.EnableGRPCGateway = false
	// A member alone is elected by its own vote: short ticks mean a start within 0.1 s, and there is no other
	// member that could mistake a slow disk for a dead leader.
	ec.TickMs, ec.ElectionMs = 20, 100
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	ec.UnsafeNoFsync = cfg.UnsafeNoFsync
	// Without them each restart would give every lease its whole TTL again, and the lease of a dead host no end. etcd
	// takes note of what is left every five minutes, so a restart gives back at most that, and the time it took.
	// A lease that is renewed often is noted more often as weeks go by, up to once a second: even then 10,000 of them
	// cost a fiftieth of a core.
	_ = ec.ServerFeatureGate.(featuregate.MutableFeatureGate).SetFromMap(map[string]bool{ // no error: etcd knows both
		string(features.LeaseCheckpoint): true, string(features.LeaseCheckpointPersist): true,
	})
	if cfg.CertFile != "" {
		ec.ClientTLSInfo.CertFile, ec.ClientTLSInfo.KeyFile = cfg.CertFile, cfg.KeyFile
		ec.ClientTLSInfo.TrustedCAFile = cfg.CAFile
		ec.ClientTLSInfo.ClientCertAuth = cfg.CAFile != ""
	}
	return ec
}

// parseListeners reads where to serve clients: on an address, on a socket, or on both, in this order.
func parseListeners(cfg Config) (listen []url.URL, err error) {
	if cfg.Listen != "" || cfg.Socket == "" {
		u, err := parseListen(cfg.Listen, cfg.CertFile != "")
		if err != nil {
			return nil, fmt.Errorf("listen address %q: %w", cfg.Listen, err)
		}
		listen = append(listen, u)
	}
	if cfg.Socket != "" {
		// etcd would remove what is there, also if somebody listens on it.
		if c, err := net.Dial("unix", cfg.Socket); err == nil {
			c.Close()
			return nil, fmt.Errorf("socket %s: another etcd listens there", cfg.Socket)
		}
		if err := os.MkdirAll(filepath.Dir(cfg.Socket), 0o755); err != nil {
			return nil, err
		}
		listen = append(listen, url.URL{Scheme: "unix", Path: cfg.Socket})
	}
	return listen, nil
}

// parseListen reads the address to serve clients on, with a certificate if secure.
func parseListen(raw string, secure bool) (url.URL, error) {
	scheme, host, ok := strings.Cut(raw, "://")
	if !ok {
		scheme, host = "http", raw
		if secure {
			scheme = "https"
		}
	}
	switch {
	case scheme != "http" && scheme != "https":
		return url.URL{}, fmt.Errorf("scheme %q is neither http nor https", scheme)
	case scheme == "https" && !secure:
		return url.URL{}, errors.New("https needs a certificate")
	case scheme == "http" && secure:
		return url.URL{}, errors.New("http would ignore the certificate: use https")
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return url.URL{}, errors.New("want host:port")
	}
	if _, err := netip.ParseAddr(name); err != nil && name != "localhost" {
		return url.URL{}, errors.New("the host must be an IP address or localhost")
	}
	return url.URL{Scheme: scheme, Host: net.JoinHostPort(name, port)}, nil
}
