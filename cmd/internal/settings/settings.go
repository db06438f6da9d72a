// Package settings is what overlayd and overlayctl can be told, and where from: a flag, the environment, the
// configuration file, or the default, in this order.
package settings

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// DefaultFile is read when no other configuration file is named. It need not exist.
const DefaultFile = "/etc/overlayd/overlayd.yaml"

// configKey names the one setting that the file cannot hold.
const configKey = "config"

// Daemon is everything that overlayd can be told, as it was told: well formed, but not yet checked for sense.
type Daemon struct {
	Client
	Network    string // JSON or a CIDR; empty: do not write one
	Networks   []string
	Iface      []string
	IfaceRegex []string
	IfaceReach netip.Addr
	PublicIP   netip.Addr
	PublicIPv6 netip.Addr
	IPMasq     bool
	Guard      []string
	Unready    string // policy-unready
	LogDenied  bool
	FastPath   string
	Names      bool
	Extension  bool
	LeaseTTL   time.Duration
	SubnetFile string // empty: subnet.env in RunDir; see SubnetPath
	StateDir   string
	HTTP       string // empty: off
	LogLevel   slog.Level
	LogFormat  string
	DryRun     bool
}

// Register declares every setting of overlayd as a flag of fs. The names of the flags are the keys of the
// configuration file; this is the only list of them.
func (d *Daemon) Register(fs *pflag.FlagSet) {
	d.register(fs)
	fs.StringVar(&d.Network, "network", "", "network `config`, JSON or a CIDR, to write where the prefix has none yet; no other range is followed")
	fs.StringSliceVar(&d.Networks, "networks", nil, "comma-separated `names` of networks that this host joins besides the one that has no name; all: whichever there are")
	fs.StringSliceVar(&d.Iface, "iface", nil, "`link` or address to reach the other hosts by; may be repeated, the first match counts (default: the default route's)")
	fs.StringArrayVar(&d.IfaceRegex, "iface-regex", nil, "`regexp` of links or addresses, tried after --iface; may be repeated")
	fs.TextVar(&d.IfaceReach, "iface-can-reach", netip.Addr{}, "use the link by which this `address` is reached; tried last")
	fs.TextVar(&d.PublicIP, "public-ip", netip.Addr{}, "IPv4 `address` at which other hosts reach this one (default: the link's)")
	fs.TextVar(&d.PublicIPv6, "public-ipv6", netip.Addr{}, "IPv6 `address` at which other hosts reach this one (default: the link's)")
	fs.BoolVar(&d.IPMasq, "ip-masq", false, "hide packets that leave the overlay behind this host's address")
	fs.StringSliceVar(&d.Guard, "guard", []string{"tunnel", "overlay", "containers"}, "comma-separated `parts` of the guard against forged packets; empty: none")
	fs.StringVar(&d.Unready, "policy-unready", "closed", "`what` becomes of containers whose policies are not in force yet: closed (they get nothing through), open, or fail (closed, and the attachment fails after 2 s)")
	fs.BoolVar(&d.LogDenied, "log-denied", false, "remember some of the packets that policies deny, for overlayctl policy denials")
	fs.StringVar(&d.FastPath, "fast-path", "auto", "`whether` packets between containers of different hosts may pass most of the kernel by: auto (where nothing here wants to see them), on, or off")
	fs.BoolVar(&d.Names, "names", true, "answer containers' questions for names, at the address of their bridge: for those of containers, NAME.overlay, and by this host's resolvers for others")
	fs.BoolVar(&d.Extension, "extension", false, "run the commands that the network's config names, if its backend is extension: who may write that says what runs here")
	fs.DurationVar(&d.LeaseTTL, "lease-ttl", 24*time.Hour, "how long the lease outlives this daemon")
	fs.StringVar(&d.SubnetFile, "subnet-file", "", "`file` for the lease as environment variables (default: subnet.env in --run-dir)")
	fs.StringVar(&d.StateDir, "state-dir", "/var/lib/overlayd", "`directory` for identity, keys and the lease cache")
	fs.StringVar(&d.HTTP, "http", "127.0.0.1:9417", "`address` for /healthz, /readyz and /metrics; empty: off")
	fs.TextVar(&d.LogLevel, "log-level", slog.LevelInfo, "least `level` to log: debug, info, warn or error")
	fs.StringVar(&d.LogFormat, "log-format", "text", "`format` of the log: text or json")
	fs.BoolVar(&d.DryRun, "dry-run", false, "print the kernel objects that would be installed, and exit")
}

// SubnetPath is where subnet.env is written.
func (d *Daemon) SubnetPath() string {
	if d.SubnetFile != "" {
		return d.SubnetFile
	}
	return filepath.Join(d.RunDir, "subnet.env")
}

// SubnetPathOf is where a network's subnet.env is written; the unnamed one's is SubnetPath.
func SubnetPathOf(runDir, network string) string { return filepath.Join(runDir, network, "subnet.env") }

// Client is the part of the daemon's settings that overlayctl uses too.
type Client struct {
	Etcd                 Etcd
	EtcdEmbedded         bool
	EtcdEmbeddedListen   string // empty: on EtcdSocket alone
	EtcdEmbeddedInsecure bool
	JoinListen           string // empty: off
	RunDir               string
}

// Register declares the settings as flags of fs. Those that only the daemon's file should say are hidden.
func (c *Client) Register(fs *pflag.FlagSet) {
	c.register(fs)
	for _, name := range []string{"etcd-embedded", "etcd-embedded-listen", "etcd-embedded-insecure", "join-listen"} {
		fs.Lookup(name).Hidden = true
	}
}

// Socket is the path of the daemon's unix socket below runDir.
func Socket(runDir string) string { return filepath.Join(runDir, "overlayd.sock") }

// EtcdSocket is the path of the unix socket below runDir at which the embedded etcd does everything for its user and root.
func EtcdSocket(runDir string) string { return filepath.Join(runDir, "etcd.sock") }

func (c *Client) register(fs *pflag.FlagSet) {
	fs.String(configKey, DefaultFile, "configuration `file`")
	fs.StringVar(&c.RunDir, "run-dir", "/run/overlayd", "`directory` of subnet.env and overlayd.sock")
	fs.BoolVar(&c.EtcdEmbedded, "etcd-embedded", false, "run etcd inside this daemon, which reaches it by etcd.sock in --run-dir")
	fs.StringVar(&c.EtcdEmbeddedListen, "etcd-embedded-listen", "", "`address` on which the embedded etcd serves hosts that show a certificate of --etcd-cafile; empty: none")
	fs.BoolVar(&c.EtcdEmbeddedInsecure, "etcd-embedded-insecure", false, "serve --etcd-embedded-listen without certificates: who reaches it can take any subnet")
	fs.StringVar(&c.JoinListen, "join-listen", "", "`address` at which other hosts join with a token and renew certificates, as overlayctl init sets it; empty: none")
	e := &c.Etcd
	fs.StringSliceVar(&e.Endpoints, "etcd-endpoints", []string{"http://127.0.0.1:2379"}, "comma-separated `URLs` of etcd")
	fs.StringVar(&e.Prefix, "etcd-prefix", "/coreos.com/network", "`key` below which etcd holds the network")
	fs.StringVar(&e.CAFile, "etcd-cafile", "", "`file` with the CA that certificates must be signed by")
	fs.StringVar(&e.CertFile, "etcd-certfile", "", "`file` with this host's certificate, for etcd")
	fs.StringVar(&e.KeyFile, "etcd-keyfile", "", "`file` with the certificate's key")
	fs.StringVar(&e.Username, "etcd-username", "", "`name` to authenticate to etcd with")
	fs.StringVar(&e.PasswordFile, "etcd-password-file", "", "`file` with the password for --etcd-username")
}

// Etcd says where etcd is and how to speak to it, and which network in it is meant.
type Etcd struct {
	etcdstore.Config
	Prefix string
}

// ListenAddress is the host:port of an etcd-embedded-listen, which may have a scheme.
func ListenAddress(listen string) string {
	if _, address, ok := strings.Cut(listen, "://"); ok {
		return address
	}
	return listen
}

// EtcdURL is the endpoint of EtcdSocket.
func EtcdURL(runDir string) string {
	path, err := filepath.Abs(EtcdSocket(runDir))
	if err != nil { // there is no working directory, and it will be said of the run directory
		path = EtcdSocket(runDir)
	}
	return "unix://" + path
}

// UseEmbedded points at the etcd that this host's daemon runs, if it does and no endpoints were given.
func (c *Client) UseEmbedded(from Sources) {
	if _, given := from["etcd-endpoints"]; !given && c.EtcdEmbedded {
		c.Etcd.Endpoints = []string{EtcdURL(c.RunDir)}
	}
}
