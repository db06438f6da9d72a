package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// forge tries to reach the gateway with an address of the subnet that is not the container's own.
func (c *Container) forge(gateway netip.Addr) error {
	raw := gateway.AsSlice()
	raw[len(raw)-1] = 222
	stolen, _ := netip.AddrFromSlice(raw)
	c.Exec("ip", "address", "add", netip.PrefixFrom(stolen, stolen.BitLen()).String(), "dev", "eth0", "nodad")
	defer c.Exec("ip", "address", "del", netip.PrefixFrom(stolen, stolen.BitLen()).String(), "dev", "eth0")
	_, err := c.Try("ping", "-n", "-c1", "-W1", "-I", stolen.String(), gateway.String())
	return err
}

// wantGuarded fails unless the container reaches its gateways, and not with another's address.
func (c *Container) wantGuarded() {
	c.t.Helper()
	for _, gateway := range c.Gateways {
		eventually(c.t, c.Name+" reaches its gateway", func() error {
			_, err := c.Try("ping", "-n", "-c1", "-W1", gateway.String())
			return err
		})
		if err := c.forge(gateway); err == nil {
			c.t.Errorf("%s reaches %s with an address that is not its own", c.Name, gateway)
		}
	}
}

// elements counts what is in the sets of the guard of bridges.
func (h *Host) elements(set string) int {
	out, err := h.Try("sh", "-c", "nft list set bridge overlayd "+set+" | grep -o '..:..:..:..:..:..' | wc -l")
	n := 0
	if err == nil {
		_, _ = fmt.Sscan(out, &n)
	}
	return n
}

// waitSwept waits until the guard knows no container any more.
func (h *Host) waitSwept() {
	h.t.Helper()
	eventually(h.t, "the guard's elements are swept", func() error {
		if n := h.elements("own4"); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
}

// TestAttackWithoutDaemon: with the daemon dead nothing opens, and new containers are attached and guarded.
func TestAttackWithoutDaemon(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	startAll(t, []*Host{h})
	h.NewContainer()
	before := h.NewContainer()
	before.wantGuarded()
	h.Daemon.Kill()
	before.wantGuarded()
	after := h.NewContainer()
	after.wantGuarded()
	after.Detach()
	// One whose elements are lost is cut off, not let free.
	h.Exec("nft", "flush", "set", "bridge", "overlayd", "own4")
	if _, err := before.Try("ping", "-n", "-c1", "-W1", before.Gateways[0].String()); err == nil {
		t.Error("a container without an element reaches its gateway")
	}
	h.Start()
	before.wantGuarded()
	eventually(t, "the elements of two containers", func() error {
		if n := h.elements("own4"); n != 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// TestAttackGuardRemoved: what is taken from the guard of containers comes back, whatever it is, with the containers' elements;
// those of records that are gone do not.
func TestAttackGuardRemoved(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	startAll(t, []*Host{h})
	h.NewContainer()
	c := h.NewContainer()
	for _, remove := range [][]string{
		{"flush", "ruleset"},
		{"delete", "table", "bridge", "overlayd"},
		{"flush", "chain", "bridge", "overlayd", "containers"},
		{"flush", "set", "bridge", "overlayd", "own4"},
		{"flush", "set", "bridge", "overlayd", "target6"},
	} {
		h.Exec(append([]string{"nft"}, remove...)...)
		eventually(t, fmt.Sprintf("the guard is back after nft %v", remove), func() error {
			if n := h.elements("own4"); n != 2 {
				return fmt.Errorf("%d elements", n)
			}
			for _, gateway := range c.Gateways {
				if err := c.forge(gateway); err == nil {
					return fmt.Errorf("%s is reached with a forged address", gateway)
				}
			}
			return nil
		})
		c.wantGuarded()
	}
	// A container that died without a DEL, and whose record somebody removes.
	dead := h.NewContainer()
	if err := os.Remove(h.record(dead)); err != nil {
		t.Fatal(err)
	}
	c.wantGuarded()
	if n := h.elements("own4"); n != 3 {
		t.Errorf("%d elements: a container that is there has lost its own with its record", n)
	}
	dead.Exec("ip", "link", "del", "eth0")
	h.NewContainer().Detach() // or with the next look
	eventually(t, "the elements of a dead container go", func() error {
		if n := h.elements("own4"); n != 2 {
			return fmt.Errorf("%d elements", n)
		}
		return nil
	})
}

// record is the path of a container's record.
func (h *Host) record(c *Container) string {
	h.t.Helper()
	all, err := filepath.Glob(filepath.Join(h.varLib, "cni/overlay/overlay/*.json"))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, path := range all {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), `"`+c.Path()+`"`) {
			return path
		}
	}
	h.t.Fatalf("no record of %s among %v", c.Name, all)
	return ""
}

// A host that is told not to guard containers does not, and says so; one that is told again does, those that are there too.
func TestGuardOfContainersOff(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	startAll(t, []*Host{h}, "--guard=tunnel,overlay")
	c := h.NewContainer()
	eventually(t, "a container may be another", func() error { return c.forge(c.Gateways[0]) })
	h.Daemon.Kill()
	h.Start()
	h.WaitReady()
	eventually(t, "it may not any more", func() error {
		if err := c.forge(c.Gateways[0]); err == nil {
			return fmt.Errorf("it may")
		}
		return nil
	})
	c.wantGuarded()
}
