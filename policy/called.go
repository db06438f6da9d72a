package policy

import "strings"

// Labels that give several containers one name, and say whose it is.
const (
	composeService = "com.docker.compose.service"
	composeProject = "com.docker.compose.project"
	nomadGroup     = "overlayd/nomad-group"
	nomadJob       = "overlayd/nomad-job"
)

// Called is a name by which an endpoint can be found within its namespace.
type Called struct {
	Name string // a DNS label, as [DNSLabel] returns it
	// Owner is the service whose name it is: those of one owner share the name. Empty: it is the container's own.
	Owner string
}

// Called returns the names of an endpoint, its own first: none that is no DNS label. A container that has the name of its service
// has it as one of the service.
func (id Identity) Called() (all []Called) {
	for _, c := range []Called{
		{id.Name, ""},
		{id.Labels[composeService], "compose " + id.Labels[composeProject]},
		{id.Labels[nomadGroup], "nomad " + id.Labels[nomadJob]},
	} {
		name, ok := DNSLabel(c.Name)
		if !ok {
			continue
		}
		if len(all) > 0 && all[0].Name == name && all[0].Owner == "" {
			all[0].Owner = c.Owner
			continue
		}
		all = append(all, Called{name, c.Owner})
	}
	return all
}

// DNSLabel returns a name as DNS has it, in lower case; ok is false if it can be none: up to 63 letters, digits and hyphens, with
// no hyphen at its ends (RFC 1123), or underscores, which the names of containers have and every resolver lets pass.
func DNSLabel(name string) (label string, ok bool) {
	if name == "" || len(name) > maxLabel || name[0] == '-' || name[len(name)-1] == '-' {
		return "", false
	}
	for _, r := range []byte(name) {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_') {
			return "", false
		}
	}
	return strings.ToLower(name), true
}
