package agent

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// State is what a host remembers between starts: who it is, and its view of the network. It lives in the state
// directory, which one daemon at a time may use.
type State struct {
	HostID string     // random; names the host in etcd
	VTEP   kernel.MAC // of the vxlan links that the host makes
	// WireGuard is the key of its wireguard links; zero before a network needs one.
	WireGuard kernel.Secret

	dir     string
	machine string        // digest of the machine-id
	spent   kernel.Secret // the wireguard key that it had before, or as another host: a link may have it still
	lock    *os.File
	named   bool // it is of a network that has a name
}

// identity is the file identity.json.
type identity struct {
	HostID  string `json:"hostID"`
	VTEP    string `json:"vtepMAC"`
	Machine string `json:"machine"` // digest of the machine-id that the identity was made on
}

// errEmpty says that the identity is lost, as a power loss may leave it. Whose the leases are that are remembered beside it says
// who the host was; if that is another machine's, it is found out as a copy is.
var errEmpty = fmt.Errorf("is empty: %w", fs.ErrNotExist)

// MachineID reads machine-id(5); it is empty where there is none.
func MachineID() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// hardware is a digest of what stays when everything on a machine's disk is new: its number, which is SMBIOS's UUID or the
// device tree's, and nic, the MAC of the underlay's link. It is empty where one of the two is missing: virtual machines
// behind one address may have the same MAC, and containers have the same machine.
func hardware(nic string) string {
	for _, path := range []string{"/sys/class/dmi/id/product_uuid", "/proc/device-tree/serial-number"} {
		if id, err := os.ReadFile(path); err == nil && len(id) > 0 && nic != "" {
			return digest(string(id) + nic)
		}
	}
	return ""
}

// OpenState opens or makes the state directory dir of the machine and locks it until Close. A directory that was
// copied from another machine, a cloned image say, gets a new identity: two hosts of one identity would fight for
// one lease.
func OpenState(dir, machineID string, log *slog.Logger) (*State, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s, err := ReadState(dir, machineID)
	if errors.Is(err, fs.ErrNotExist) {
		why := err
		s = NewState()
		s.dir, s.machine = dir, digest(machineID)
		if errors.Is(err, errEmpty) {
			s.HostID = cmp.Or(leasecache.HostID(dir), s.HostID)
			err = s.readWireGuard()
		} else {
			err = s.dropWireGuard()
		}
		if err == nil {
			err = s.saveIdentity()
		}
		if err == nil {
			log.Info("made a new host identity", "hostID", s.HostID, "dir", dir, "why", why)
		}
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	s.lock = lock
	return s, nil
}

// Close lets another daemon use the directory. To close the file is not enough: a child process that is being started
// has it open too, until it executes.
func (s *State) Close() error {
	return errors.Join(unix.Flock(int(s.lock.Fd()), unix.LOCK_UN), s.lock.Close())
}

// lockDir takes the directory's lock, which the kernel gives up when the process ends in whatever way. It writes nothing, so that
// a disk that is full, or can only be read, is no obstacle.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s is in use by another overlayd: stop it, or give this one its own --state-dir and --run-dir", dir)
		}
		return nil, fmt.Errorf("state directory: lock %s: %w", dir, err)
	}
	return f, nil
}

// ReadState reads the identity in dir without a lock and changes nothing. It wraps fs.ErrNotExist if there is none
// that this machine may use.
func ReadState(dir, machineID string) (*State, error) {
	path := filepath.Join(dir, "identity.json")
	raw, err := subnet.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if len(raw) == 0 {
		return nil, fmt.Errorf("state directory: %s %w", path, errEmpty)
	}
	var id identity
	if err := json.Unmarshal(raw, &id); err != nil {
		return nil, fmt.Errorf("state directory: %s: %w; remove it to get a new identity", path, err)
	}
	s := &State{HostID: id.HostID, dir: dir, machine: digest(machineID)}
	mac, err := net.ParseMAC(id.VTEP)
	if err != nil || copy(s.VTEP[:], mac) != len(mac) || len(mac) != len(s.VTEP) || id.HostID == "" {
		return nil, fmt.Errorf("state directory: %s is damaged; remove it to get a new identity", path)
	}
	if id.Machine != s.machine {
		return nil, fmt.Errorf("state directory: %s was made on another machine: %w", path, fs.ErrNotExist)
	}
	return s, s.readWireGuard()
}

// NewState is a new host's state, which is on no disk.
func NewState() *State {
	s := &State{HostID: strings.ToLower(rand.Text())}
	rand.Read(s.VTEP[:])         // never fails
	s.VTEP[0] = s.VTEP[0]&^1 | 2 // unicast, locally administered (IEEE 802)
	return s
}

// NetworksDir is where in the state directory each network that has a name has its own.
const NetworksDir = "networks"

// Named is what the same host remembers of a network that has a name: in a directory of its own it has a wireguard key of its own,
// and its view of that network.
func (s *State) Named(network string) (*State, error) {
	n := &State{HostID: s.HostID, VTEP: s.VTEP, dir: filepath.Join(s.dir, NetworksDir, network), machine: s.machine, lock: s.lock, named: true}
	if s.dir == "" { // it is on no disk
		return n, nil
	}
	if s.lock != nil {
		if err := os.MkdirAll(n.dir, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	return n, n.readWireGuard()
}

// Dir is the directory.
func (s *State) Dir() string { return s.dir }

// Renew makes the host another one: what it was may be somebody else too. Of several networks the unnamed one does that.
func (s *State) Renew() error {
	if s.named {
		return errors.New("start overlayd again once the network that has no name has taken one")
	}
	next := NewState()
	next.dir, next.machine = s.dir, s.machine
	if err := next.saveIdentity(); err != nil {
		return err
	}
	s.HostID, s.VTEP = next.HostID, next.VTEP
	return s.dropWireGuard()
}

func (s *State) saveIdentity() error {
	raw, err := json.MarshalIndent(identity{s.HostID, s.VTEP.String(), s.machine}, "", "\t")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(s.dir, "identity.json"), raw, 0o600); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// digest names the machine without giving its number away, as machine-id(5) asks. It is empty where there is none, so
// that a state directory moves freely between machines without a machine-id.
func digest(id string) string {
	if id == "" {
		return ""
	}
	mac := hmac.New(sha256.New, []byte(id))
	mac.Write([]byte("overlayd"))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}
