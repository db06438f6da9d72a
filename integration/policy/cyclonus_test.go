package policy

import "fmt"

// cyclonusPods makes the containers of cyclonus: a, b and c of the namespaces x, y and z, of which those of one name are on both
// hosts, and those of one namespace too.
func (r *rig) cyclonusPods() {
	r.t.Helper()
	for i, ns := range []string{"x", "y", "z"} {
		for j, name := range []string{"a", "b", "c"} {
			var ports []namedPort
			for _, s := range services {
				if s.proto != "icmp" {
					ports = append(ports, namedPort{fmt.Sprintf("serve-%d-%s", s.port, s.proto), s.port, s.proto})
				}
			}
			r.pods = append(r.pods, r.newPod(r.hosts[(i+j)%2], ns, name, map[string]string{"pod": name}, ports...))
		}
	}
}
