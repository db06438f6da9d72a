package integration

import "testing"

// TestAddressReplaced gives the address of a container that is gone to another one. Its host, a neighbour on the bridge,
// another host and a container there have the old one's MAC in their caches, or that of the way to it, and reach the new one
// with the first packet.
func TestAddressReplaced(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	neighbour, remote := hosts[0].NewContainer(), hosts[1].NewContainer()
	old := hosts[0].NewContainer()
	fresh := &Container{Node: newNode(t, hosts[0].Name+"-fresh"), Host: hosts[0]}
	from := []*Node{remote.Node, hosts[1].Node, neighbour.Node, hosts[0].Node}
	for _, node := range from {
		for _, addr := range old.Addrs {
			eventually(t, node.Name+" reaches "+addr.String(), func() error {
				_, err := node.Try("ping", "-n", "-c1", "-W1", addr.String())
				return err
			})
		}
	}
	old.Detach()

	conf := hosts[0].PluginConf(map[string]any{"isDefaultGateway": true})
	conf["args"] = map[string]any{"cni": map[string]any{"ips": old.Addrs, "mac": "02:aa:00:00:00:07"}}
	hosts[0].SetConf(map[string]any{"cniVersion": "1.0.0", "name": "overlay", "plugins": []any{conf}})
	fresh.Attach()
	for _, node := range from {
		for _, addr := range old.Addrs {
			if out, err := node.Try("ping", "-n", "-c1", "-W5", addr.String()); err != nil {
				t.Errorf("%s does not reach the new container at %s: %v\n%s", node.Name, addr, err, out)
			}
		}
	}
	fresh.Detach()
}
