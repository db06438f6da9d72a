package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/cmd/internal/settings"
)

const (
	// mostPassword is TCP_MD5SIG_MAXKEYLEN of linux/tcp.h, in bytes.
	mostPassword = 80
	bgpPort      = 179
	// mostRestart is what graceful restart has twelve bits for, in seconds (RFC 4724, section 3).
	mostRestart = 1<<12 - 1
)

// config is what overlayd-bgp was told, checked for sense.
type config struct {
	AS          uint32     `json:"as"`
	RouterID    netip.Addr `json:"router-id"`
	Neighbors   []neighbor `json:"neighbors"`
	RestartTime uint16     `json:"restart-time"` // seconds for which routers keep the routes of one that is gone
	HTTP        string     `json:"http"`         // address of /healthz, /readyz, /status and /metrics; "": off
	StateDir    string     `json:"state-dir"`
	LogLevel    string     `json:"log-level"`

	client settings.Client
}

// neighbor is a router.
type neighbor struct {
	Address      netip.Addr `json:"address"`
	AS           uint32     `json:"as"`
	Port         uint16     `json:"port"`
	Source       netip.Addr `json:"source,omitzero"` // of this host's addresses; the zero Addr: as the routes have it
	Hops         uint8      `json:"hops"`            // that it may be away, if of another AS; 0: it is on a link of this host
	PasswordFile string     `json:"password-file"`

	password string // for TCP MD5; "": none
}

// readConfig reads the file, and those that it names. Its errors name the file and the key.
func readConfig(path string, client settings.Client) (config, error) {
	c := config{RestartTime: 120, HTTP: "127.0.0.1:9419", StateDir: "/var/lib/overlayd", LogLevel: "info", client: client}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%s does not exist: copy /usr/share/overlayd/examples/bgp.yaml there, and name the routers in it", path)
	}
	if err != nil {
		return c, err
	}
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func (c *config) check() error {
	switch {
	case c.AS == 0:
		return errors.New("as: missing: the number of this speaker's autonomous system, of a private one 64512-65534")
	case !c.RouterID.IsValid():
		return errors.New("router-id: missing: an IPv4 address of this host")
	case !c.RouterID.Is4() || c.RouterID.IsUnspecified():
		return fmt.Errorf("router-id: %s is not an IPv4 address of this host", c.RouterID)
	case len(c.Neighbors) == 0:
		return errors.New("neighbors: missing: the routers to announce the subnets to")
	case c.RestartTime == 0 || c.RestartTime > mostRestart:
		return fmt.Errorf("restart-time: %d is not in 1-%d seconds", c.RestartTime, mostRestart)
	}
	if c.HTTP != "" {
		if _, _, err := net.SplitHostPort(c.HTTP); err != nil {
			return fmt.Errorf("http: %w", err)
		}
	}
	seen := map[netip.Addr]bool{}
	for i := range c.Neighbors {
		n := &c.Neighbors[i]
		if err := n.check(); err != nil {
			return fmt.Errorf("neighbors[%d]: %w", i, err)
		}
		if seen[n.Address] {
			return fmt.Errorf("neighbors[%d]: address: %s is there twice", i, n.Address)
		}
		seen[n.Address] = true
	}
	return nil
}

func (n *neighbor) check() (err error) {
	switch {
	case !n.Address.IsValid():
		return errors.New("address: missing")
	case !n.Address.IsGlobalUnicast() || n.Address.Zone() != "" || n.Address.Is4In6():
		return fmt.Errorf("address: %s is none that a router has", n.Address)
	case n.AS == 0:
		return fmt.Errorf("as: missing, of %s", n.Address)
	case n.Source.IsValid() && n.Source.Is4() != n.Address.Is4():
		return fmt.Errorf("source: %s is of another family than %s", n.Source, n.Address)
	}
	if n.Port == 0 {
		n.Port = bgpPort
	}
	n.password, err = readPassword(n.PasswordFile)
	return err
}

// readPassword is the file's without its last newline. Its errors do not tell it.
func readPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("password-file: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("password-file: everybody may read %s: chmod o= it", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("password-file: %w", err)
	}
	password := strings.TrimRight(string(data), "\r\n")
	if password == "" || len(password) > mostPassword {
		return "", fmt.Errorf("password-file: %s has %d bytes: MD5 takes 1-%d", path, len(password), mostPassword)
	}
	return password, nil
}
