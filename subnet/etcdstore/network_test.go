package etcdstore

import (
	"strings"
	"testing"
)

// A network that leases in use have no place in is not followed, by any host, until they are gone.
func TestNetworkThatStrandsHosts(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]string{
		"another range":    strings.ReplaceAll(network, "10.5.", "10.6."),
		"a narrower range": `{"Network":"10.5.0.0/23","SubnetLen":26,"Backend":{"Type":"vxlan"}}`,
		"far smaller ones": `{"Network":"10.5.0.0/16","SubnetLen":29,"Backend":{"Type":"vxlan"}}`,
		"another family":   `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, "")
			etcd.put(t, prefix+"/config", network)
			s := openStore(t, etcd.Endpoint())
			var hosts []*host
			for _, id := range []string{"h1", "h2"} {
				hosts = append(hosts, join(t, s, JoinConfig{HostID: id}, "192.0.2."+id[1:]))
			}
			keys := []string{hosts[0].awaitHeld("").Own.Record.Key(), hosts[1].awaitHeld("").Own.Record.Key()}
			etcd.put(t, prefix+"/config", next)
			for i, h := range hosts {
				u := h.await("says what it does not follow", func(u Update) bool {
					return u.Err != nil && strings.Contains(u.Err.Error(), "no place for subnet 10.5.")
				})
				if string(u.Config) != network || u.Own.State != Held || u.Own.Record.Key() != keys[i] {
					t.Errorf("update %+v", u)
				}
				h.awaitPeers(keys[1-i])
			}
			etcd.del(t, subnets+keys[0])
			hosts[0].awaitHeld(keys[0])
			if n := hosts[1].goneCount(keys[0]); n != 0 {
				t.Errorf("the peer was gone %d times", n)
			}
			etcd.put(t, prefix+"/config", network)
			hosts[0].await("is content", func(u Update) bool { return u.Err == nil })
		})
	}
}

// When the last lease that a network has no place for is gone, the network is followed.
func TestNetworkIsFollowedLater(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	etcd.put(t, subnets+"10.5.200.0-24", `{"PublicIP":"192.0.2.7"}`) // a reservation: nobody has it
	lease(t, etcd, subnets+"10.5.201.0-24", hostValue("h9", "192.0.2.9"))
	s := openStore(t, etcd.Endpoint())
	full := join(t, s, JoinConfig{HostID: "h1"}) // claims nothing
	full.awaitPeers("10.5.200.0-24", "10.5.201.0-24")
	next := strings.ReplaceAll(network, "10.5.", "10.6.")
	etcd.put(t, prefix+"/config", next)
	full.await("refuses", func(u Update) bool { return u.Err != nil && strings.Contains(u.Err.Error(), "(h9)") })
	etcd.del(t, subnets+"10.5.201.0-24")
	full.await("follows", func(u Update) bool { return u.Err == nil && string(u.Config) == next })
}
