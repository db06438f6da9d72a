package main

import (
	"fmt"
	"strings"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// statusNames is where names of containers are answered, and whose are claimed by others.
func statusNames(n api.Names) field {
	f := field{"NAMES", fmt.Sprintf("%d endpoints, answered at %s", n.Endpoints, strings.Join(n.Listening, ", ")), good}
	switch {
	case n.Error != "":
		f.tone = uneasy
		f.value = fmt.Sprintf("%d endpoints, not answered everywhere", n.Endpoints)
	case len(n.Listening) == 0:
		f = field{"NAMES", "answered as soon as there is a container", plain}
	case len(n.Contested) > 0:
		c := n.Contested[0]
		f.value += fmt.Sprintf("; %d claimed by others too: %s.%s is that of %s, which was first, not of %s", len(n.Contested), c.Name, c.Namespace,
			c.Owner, strings.Join(c.Others, ", "))
	}
	return f
}
