package subnet

import (
	"encoding/json"
	"strings"
)

// redacted stands where a secret was.
const redacted = `"[removed]"`

// Redact is a network configuration without the key that all its hosts share, for eyes that need not know it: a log's, a status's.
// One that names none, or that nobody can read, stays as it is.
func Redact(config []byte) []byte {
	c, err := parseConfig(config)
	if err != nil {
		return config
	}
	var backend map[string]json.RawMessage
	if json.Unmarshal(c.values["Backend"], &backend) != nil {
		return config
	}
	found := false
	for name := range backend {
		if strings.EqualFold(name, "PSK") {
			backend[name], found = json.RawMessage(redacted), true
		}
	}
	if !found {
		return config
	}
	c.values["Backend"], _ = json.Marshal(backend) // what was JSON still is
	return c.marshal()
}
