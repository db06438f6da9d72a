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
	err = rtnl.Consistent(func() error {
		keys = map[string]bool{}
		b.Reset()
		b.BeginNft(unix.NFT_MSG_GETSETELEM, 0, s.Family)
		b.AttrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
		b.AttrString(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		b.End()
		return c.DumpOnce(b, func() bool { return false }, func(body []byte) {
			for _, elements := range nested(body[min(nfgenmsgSize, len(body)):], unix.NFTA_SET_ELEM_LIST_ELEMENTS) {
				for _, element := range nested(elements, unix.NFTA_LIST_ELEM) {
					key := value(element, unix.NFTA_SET_ELEM_KEY)
					if end := value(element, ports.KeyEnd); end != "" {
						key = ports.Interval(key, end)
					}
					keys[key] = true
				}
			}
		})
	})
	return keys, err
}

// value is a key of an element.
func value(element []byte, typ uint16) (key string) {
	for _, data := range nested(element, typ) {
		for _, value := range nested(data, unix.NFTA_DATA_VALUE) {
			key = string(value)
		}
	}
	return key
}

// nfgenmsgSize is how long the header is that stands before the attributes of every message of nftables.
const nfgenmsgSize = 4

// nested are the attributes of a type.
func nested(b []byte, typ uint16) (all [][]byte) {
	for t, data := range rtnl.Attributes(b) {
		if t == typ {
			all = append(all, data)
		}
	}
	return all
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
