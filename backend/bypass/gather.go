package bypass

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// ownTables are those of overlayd, by name. What they judge of later packets, the fast path judges too, or leaves alone.
var ownTables = map[string]bool{ports.Table: true, pending.Table: true, pending.Routes.Name: true}

// own says whether a table is overlayd's: those of named networks have their names behind a dot.
func own(table string) bool {
	base, _, _ := strings.Cut(table, ".")
	return ownTables[base]
}

// nftFamilies are those that may see what is fast.
var nftFamilies = map[uint8]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev",
}

// xtables are iptables' but for those of translation.
var xtables = []string{"filter", "mangle", "raw", "security"}

// tracking are expressions, matches and targets of nftables for which the kernel tracks connections.
var tracking = []string{
	"ct", "nat", "masq", "redir", "connlimit", "synproxy", "flow_offload", "conntrack", "state", "connmark", "connbytes", "connlabel",
	"helper", "CT", "CONNMARK", "CONNSECMARK", "MASQUERADE", "REDIRECT", "NETMAP", "SNAT", "DNAT", "SYNPROXY",
}

// nftables reads what the kernel's nftables have.
type nftables struct {
	conn  *rtnl.Conn
	batch rtnl.Batch
}

// judging are tables of others with chains that packets come to by themselves, other than for translation, and that do
// anything; and whether anything tracks connections.
func (n *nftables) judging() (tables []rtnl.Table, tracked bool, err error) {
	err = rtnl.Consistent(func() error {
		tables = nil
		return n.dump(unix.NFT_MSG_GETCHAIN, func(body []byte) {
			c := chainOf(body)
			if nftFamilies[c.table.Family] != "" && !own(c.table.Name) && c.base && c.kind != "nat" && (c.use > 0 || c.drops) &&
				!slices.Contains(tables, c.table) {
				tables = append(tables, c.table)
			}
		})
	})
	if err != nil {
		return nil, true, fmt.Errorf("chains of nftables: %w", err)
	}
	err = rtnl.Consistent(func() error {
		tracked = false
		return n.dump(unix.NFT_MSG_GETRULE, func(body []byte) { tracked = tracked || tracks(body) })
	})
	if err != nil {
		return nil, true, fmt.Errorf("rules of nftables: %w", err)
	}
	slices.SortFunc(tables, func(a, b rtnl.Table) int { return strings.Compare(title(a), title(b)) })
	return tables, tracked, nil
}

func title(t rtnl.Table) string { return nftFamilies[t.Family] + " " + t.Name }

func (n *nftables) dump(msg uint16, f func(body []byte)) error {
	n.batch.Reset()
	n.batch.BeginNft(msg, 0, unix.NFPROTO_UNSPEC)
	n.batch.End()
	return n.conn.DumpOnce(&n.batch, func() bool { return false }, f)
}

// chainHead is what of a chain is looked at.
type chainHead struct {
	table       rtnl.Table
	base, drops bool
	kind        string
	use         uint32 // rules, and what leads to it
}

func chainOf(body []byte) (c chainHead) {
	if len(body) < 4 {
		return c
	}
	c.table.Family = body[0]
	for typ, data := range rtnl.Attributes(body[4:]) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			c.table.Name = unix.ByteSliceToString(data)
		case unix.NFTA_CHAIN_HOOK:
			c.base = true
		case unix.NFTA_CHAIN_TYPE:
			c.kind = unix.ByteSliceToString(data)
		case unix.NFTA_CHAIN_POLICY:
			c.drops = len(data) == 4 && binary.BigEndian.Uint32(data) == 0
		case unix.NFTA_CHAIN_USE:
			if len(data) == 4 {
				c.use = binary.BigEndian.Uint32(data)
			}
		}
	}
	return c
}

// tracks tells whether a rule has connections tracked.
func tracks(body []byte) bool {
	for _, expressions := range rtnl.NftAttributes(body, unix.NFTA_RULE_EXPRESSIONS) {
		for _, e := range rtnl.Nested(expressions, unix.NFTA_LIST_ELEM) {
			for typ, data := range rtnl.Attributes(e) {
				name := ""
				switch typ {
				case unix.NFTA_EXPR_NAME:
					name = unix.ByteSliceToString(data)
				case unix.NFTA_EXPR_DATA: // of iptables' extensions: NFTA_MATCH_NAME, NFTA_TARGET_NAME
					for _, of := range rtnl.Nested(data, unix.NFTA_MATCH_NAME) {
						name = unix.ByteSliceToString(of)
					}
				}
				if slices.Contains(tracking, name) {
					return true
				}
			}
		}
	}
	return false
}

// readTable has a table of nftables printed and reads it. Nothing is printed of a table that is no more.
func readTable(ctx context.Context, t rtnl.Table) ([]*table, error) {
	family := nftFamilies[t.Family]
	if (family == "ip" || family == "ip6") && slices.Contains(xtables, t.Name) {
		command := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[family]
		if text, err := firewall.Exec(ctx, "", command+"-nft-save", "--table", t.Name); err == nil && !strings.Contains(text, "incompatible") {
			return parseIptables(command, text), nil
		}
	}
	text, err := firewall.Exec(ctx, "", "nft", "--stateless", "--terse", "list", "table", family, t.Name)
	switch {
	case err == nil:
		return []*table{parseNft(text)}, nil
	case strings.Contains(err.Error(), "No such file or directory") && !errors.Is(err, exec.ErrNotFound):
		return nil, nil
	}
	return nil, fmt.Errorf("nft %s %s has rules that cannot be read: %w", family, t.Name, err)
}

// legacy reads the tables of legacy iptables, of either family.
func legacy(ctx context.Context, ns netns.NsHandle) (tables []*table, tracked bool, err error) {
	err = rtnl.InNetns(ns, func() error {
		for command, names := range map[string]string{"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"} {
			used, err := legacyTables(ctx, command, "/proc/thread-self/net/"+names)
			if err != nil {
				return err
			}
			for _, name := range used {
				text, err := legacySave(ctx, command, name)
				if err != nil {
					return fmt.Errorf("%s (legacy) has a table %s that cannot be read: %w", command, name, err)
				}
				tables = append(tables, parseIptables(command, strings.Replace(text, "*"+name, "*"+name+" (legacy)", 1))...)
				tracked = tracked || name == "nat" && strings.Contains(text, "\n-A ") ||
					slices.ContainsFunc(tracking, func(word string) bool { return strings.Contains(text, " "+word+" ") })
			}
		}
		return nil
	})
	return tables, tracked, err
}

// legacyTables are those in use. Who may not read their names, as a daemon that is not root, takes those of the modules that are
// loaded; or all, where they are no modules and the legacy variant is the host's. To print one makes it, if it was not there.
func legacyTables(ctx context.Context, command, names string) (used []string, err error) {
	text, err := os.ReadFile(names)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case !errors.Is(err, fs.ErrPermission):
		return strings.Fields(string(text)), err
	}
	all, module := append([]string{"nat"}, xtables...), "/sys/module/"+strings.TrimSuffix(command, "s")
	if _, err := os.Stat(module + "_tables"); err != nil && isLegacy(ctx, command) {
		return all, nil
	}
	return slices.DeleteFunc(all, func(name string) bool { _, err := os.Stat(module + "_" + name); return err != nil }), nil
}

// isLegacy tells whether the command without a variant in its name is the legacy one.
func isLegacy(ctx context.Context, command string) bool {
	version, err := firewall.Exec(ctx, "", command+"-save", "-V")
	return err == nil && !strings.Contains(version, "nf_tables")
}

// legacySave prints one table.
func legacySave(ctx context.Context, command, table string) (string, error) {
	text, err := firewall.Exec(ctx, "", command+"-legacy-save", "-t", table)
	if errors.Is(err, exec.ErrNotFound) && isLegacy(ctx, command) {
		return firewall.Exec(ctx, "", command+"-save", "-t", table)
	}
	return text, err
}
