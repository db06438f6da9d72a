package firewall

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// dumpSet reads the keys of what is in a set; unix.ENOENT if there is none.
func dumpSet(c *rtnl.Conn, b *rtnl.Batch, s Set) (keys map[string]bool, err error) {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	all, err := c.Elements(b, rtnl.Table{Family: s.Family, Name: tableName}, s.Name)
	keys = make(map[string]bool, len(all))
	for _, e := range all {
		if e.Last != "" {
			e.Key = ports.Interval(e.Key, e.Last)
		}
		keys[e.Key] = true
	}
	return keys, err
}

// commitSets adds and removes elements in one transaction. Adding what is there succeeds; to remove what is not is
// unix.ENOENT (the kernel has a request that is not since 6.3 only).
func commitSets(c *rtnl.Conn, b *rtnl.Batch, add, remove map[Set][]string) error {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	b.Transaction()
	for set, keys := range add {
		ports.Encode(b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, set.Family, set.Name, keys)
	}
	for set, keys := range remove {
		ports.Encode(b, unix.NFT_MSG_DELSETELEM, 0, set.Family, set.Name, keys)
	}
	return c.Commit(b)
}
