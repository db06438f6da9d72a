package fastpath

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// load loads programs and maps into the kernel.
func (o *programObjects) load() error {
	if err := rlimit.RemoveMemlock(); err != nil { // of kernels before 5.11
		return err
	}
	findConntrack()
	err := loadProgramObjects(o, nil)
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("the kernel lacks what the programs need (Linux 5.18, with BTF): %w", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("loading programs needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and a kernel that is not locked down: %w", err)
	case err != nil:
		return fmt.Errorf("the kernel does not take the programs: %w", err)
	}
	return nil
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
func (o *programObjects) parts() (map[string]**ebpf.Program, map[string]**ebpf.Map) {
	return map[string]**ebpf.Program{
			programProgFromContainer: &o.FromContainer, programProgFromWire: &o.FromWire,
		}, map[string]**ebpf.Map{
			programMapConsts: &o.Consts, programMapLocals: &o.Locals, programMapPeers: &o.Peers,
			programMapTraffics: &o.Traffics, programMapWays: &o.Ways,
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
	var o programObjects
	if err := o.load(); err != nil {
		return fmt.Errorf("fast path: %w", err)
	}
	defer o.Close()
	if err := o.pin(dir); err != nil {
		return fmt.Errorf("fast path: pin in %s (is it on a bpf file system?): %w", dir, err)
	}
	return nil
}

func (o *programObjects) pin(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
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
func (o *programObjects) open(dir string) error {
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
func (o *programObjects) clear() error {
	if err := o.Consts.Update(uint32(0), &programOwn{}, ebpf.UpdateAny); err != nil {
		return err
	}
	return errors.Join(clearMap[[4]uint32](o.Locals), clearMap[programPrefix](o.Peers), clearMap[uint32](o.Traffics))
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
	if err := errors.Join(os.RemoveAll(dir), sweep(netns.None())); err != nil {
		return fmt.Errorf("fast path: remove: %w", err)
	}
	return nil
}
