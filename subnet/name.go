package subnet

import (
	"fmt"
	"regexp"
	"slices"
)

// DefaultNetwork is what people call the network that has no name, where networks are named. In code its name is "".
const DefaultNetwork = "default"

// networkName is a network's name. Its 11 bytes leave room for "ovw-" in the 15 of a link's name, and for nothing that means
// something else in a path or a key.
var networkName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,9}[a-z0-9])?$`)

// notNetworks are names that have another meaning: below etcd's prefix, in overlayd's run directory, or where networks are listed.
var notNetworks = []string{"all", "bpf", "config", DefaultNetwork, "dns", "endpoints", "networks", "overlayd", "subnets"}

// ValidNetworkName says in one line why name cannot be that of a network beside the unnamed one; nil if it can: at most 11 lower
// case letters, digits and hyphens that begin with a letter and do not end in a hyphen, and none of the names that mean something
// else.
func ValidNetworkName(name string) error {
	switch {
	case slices.Contains(notNetworks, name):
		return fmt.Errorf("network %q: the name has another meaning: choose another one", name)
	case !networkName.MatchString(name):
		return fmt.Errorf("network %s: a network's name has at most 11 lower case letters, digits and hyphens, begins with a letter and does not end in a hyphen",
			clip(fmt.Appendf(nil, "%q", name)))
	}
	return nil
}
