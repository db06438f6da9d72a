package fastpath

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// objects are the programs and maps.
type objects struct {
	programPrograms
	programMaps
	Constants *ebpf.Map `ebpf:".rodata"` // whether connections can be looked at
}

// load loads programs and maps into the kernel.
func (o *objects) load() error {
	if err := rlimit.RemoveMemlock(); err != nil { // of kernels before 5.11
		return err
	}
	findConntrack()
	err := o.loadWith(1)
	if err != nil && !errors.Is(err, os.ErrPermission) {
		if o.loadWith(0) == nil { // for hosts that track nothing
			return nil
		}
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("loading programs needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and a kernel that is not locked down: %w", err)
	case err != nil:
		return fmt.Errorf("the kernel does not take the programs (Linux 5.18 with BTF would): %w", err)
	}
	return nil
}

// loadWith loads programs that can look at connections, or not.
func (o *objects) loadWith(conntrack uint8) error {
	spec, err := loadProgram()
	if err != nil {
		return err
	}
	if err := spec.Variables["conntrack"].Set(conntrack); err != nil {
		return err
	}
	return spec.LoadAndAssign(o, nil)
}

// seesConnections says whether the programs can look at connections.
func (o *objects) seesConnections() bool {
	b, err := o.Constants.LookupBytes(uint32(0))
	return err == nil && len(b) > 0 && b[0] == 1
}

// findConntrack has the kernel load its module that tracks connections, as the programs find it only if it is there. It is
// asked something by which it does so itself; that makes it track nothing yet.
func findConntrack() {
	const getStats = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5 // IPCTNL_MSG_CT_GET_STATS
	c, err := rtnl.DialNetfilter(0, rtnl.AnswersSize)
	if err != nil {
		return
	}
	defer c.Close()
	var b rtnl.Batch
	b.Begin(getStats, 0, unix.Nfgenmsg{})
	b.End()
	c.Exec(&b, nil)
}

// parts are the programs and maps by the names of their pins.
func (o *objects) parts() (map[string]**ebpf.Program, map[string]**ebpf.Map) {
	return map[string]**ebpf.Program{
			programProgFromContainer: &o.FromContainer, programProgFromWire: &o.FromWire,
		}, map[string]**ebpf.Map{
			programMapConsts: &o.Consts, programMapLocals: &o.Locals, programMapPeers: &o.Peers,
			programMapTraffics: &o.Traffics, programMapWays: &o.Ways, "constants": &o.Constants,
		}
}

// build tells objects from those of other builds.
func build() string {
	sum := sha256.Sum256(_ProgramBytes)
	return hex.EncodeToString(sum[:8])
}

// Load loads the programs and pins them below dir, on a bpf file system, for a daemon that has fewer rights: who may open the
// pins may use them. What was pinned there goes.
func Load(dir string) error {
	var o objects
	if err := o.load(); err != nil {
		return fmt.Errorf("fast path: %w", err)
	}
	if err := o.pin(dir); err != nil {
		return fmt.Errorf("fast path: pin in %s (is it on a bpf file system?): %w", dir, err)
	}
	return nil
}

func (o *objects) pin(dir string) error {
	if err := removeAll(dir); err != nil {
		return err
	}
	dir = filepath.Join(dir, build())
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		return err
	}
	programs, maps := o.parts()
	for name, p := range programs {
		err = errors.Join(err, (*p).Pin(filepath.Join(dir, name)))
	}
	for name, m := range maps {
		err = errors.Join(err, (*m).Pin(filepath.Join(dir, name)))
	}
	return err
}

// open takes what Load pinned, with nothing in the maps.
func (o *objects) open(dir string) error {
	dir = filepath.Join(dir, build())
	programs, maps := o.parts()
	var errs, err error
	for name, p := range programs {
		*p, err = ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
		errs = errors.Join(errs, err)
	}
	for name, m := range maps {
		*m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		errs = errors.Join(errs, err)
	}
	if errs != nil {
		return fmt.Errorf("take what was loaded before: %w", errs)
	}
	if err := o.clear(); err != nil {
		return fmt.Errorf("clear what was loaded before: %w", err)
	}
	return nil
}

// clear empties the maps that have entries of another daemon, from the one on without which nothing is fast.
func (o *objects) clear() error {
	if err := o.Consts.Update(uint32(0), &programOwn{}, ebpf.UpdateAny); err != nil {
		return err
	}
	return errors.Join(clearMap[[4]uint32](o.Locals), clearMap[programPrefix](o.Peers), clearMap[uint32](o.Traffics))
}

// removeAll is os.RemoveAll, for which nothing to be removed from a file system that is read-only is an error.
func removeAll(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return os.RemoveAll(dir)
}

func clearMap[K any](m *ebpf.Map) error {
	for {
		var k K
		err := m.NextKey(nil, &k)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err == nil {
			err = m.Delete(&k)
		}
		if err != nil {
			return err
		}
	}
}

// Remove removes what Load pinned below dir, and what a daemon that crashed left attached. That nothing is there is no error.
func Remove(dir string) error {
	if err := errors.Join(removeAll(dir), sweep(netns.None())); err != nil {
		return fmt.Errorf("fast path: remove: %w", err)
	}
	return nil
}
