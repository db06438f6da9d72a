// Package extension runs the commands that an operator has put into the network's configuration: they carry packets where
// overlayd itself does not.
package extension

import (
	"fmt"
	"slices"
	"strings"
)

// Commands are flannel's, and SyncCommand, each a program and its arguments with blanks between them; "": none. There is no shell.
type Commands struct {
	PreStartup   string `json:"PreStartupCommand"`   // before there is a lease; what it prints is told to peers
	PostStartup  string `json:"PostStartupCommand"`  // once there is one
	Shutdown     string `json:"ShutdownCommand"`     // when the host leaves the network, or the network goes on without commands
	SubnetAdd    string `json:"SubnetAddCommand"`    // for a peer that came, or changed
	SubnetRemove string `json:"SubnetRemoveCommand"` // for one that went
	Sync         string `json:"SyncCommand"`         // for all leases, whenever one changed, and now and then
}

// command is one of them by the key in the network's configuration.
type command struct{ key, text string }

func (c Commands) all() []command {
	return []command{
		{"PreStartupCommand", c.PreStartup}, {"PostStartupCommand", c.PostStartup}, {"ShutdownCommand", c.Shutdown},
		{"SubnetAddCommand", c.SubnetAdd}, {"SubnetRemoveCommand", c.SubnetRemove}, {"SyncCommand", c.Sync},
	}
}

// Keys are those of the network's configuration.
func Keys() (keys []string) {
	for _, c := range (Commands{}).all() {
		keys = append(keys, c.key)
	}
	return keys
}

// Any says whether there are commands.
func (c Commands) Any() bool { return c != Commands{} }

// Check refuses what only a shell would understand: flannel's own examples have it, from when flannel had one.
func (c Commands) Check() error {
	for _, c := range c.all() {
		words := strings.Fields(c.text)
		if c.text != "" && len(words) == 0 {
			return fmt.Errorf("network config: Backend.%s: only blanks", c.key)
		}
		if strings.ContainsRune(c.text, 0) {
			return fmt.Errorf("network config: Backend.%s: has a zero byte", c.key)
		}
		i := slices.IndexFunc(words, shellish)
		if i < 0 && len(words) > 0 && slices.Contains([]string{"export", "set", "cd", "exec", "if"}, words[0]) {
			i = 0
		}
		if i >= 0 {
			return fmt.Errorf("network config: Backend.%s: %q is for a shell, and there is none: make it a script on each host, and name that",
				c.key, words[i])
		}
	}
	return nil
}

// shellish says whether a word means something to a shell alone. A variable is none: those are put in.
func shellish(word string) bool {
	return slices.Contains([]string{"|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1"}, word) || strings.HasSuffix(word, ";") ||
		strings.ContainsAny(word, "`'\"") || strings.Contains(word, "$(")
}
