package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// configKeys are the keys of flannel's network configuration, in the order in which they are written.
var configKeys = []string{
	"EnableIPv4", "EnableIPv6", "EnableNFTables",
	"Network", "IPv6Network",
	"SubnetMin", "SubnetMax", "IPv6SubnetMin", "IPv6SubnetMax",
	"SubnetLen", "IPv6SubnetLen",
	"Backend",
}

// config is a network configuration as JSON has it, its keys in the spelling of configKeys.
type config struct {
	values  map[string]json.RawMessage // compact; a null counts as absent
	unknown []string                   // the keys of values that are not in configKeys, sorted
}

func parseConfig(raw []byte) (config, error) {
	if len(raw) > maxDocument {
		return config{}, fmt.Errorf("%d bytes are too many: at most %d are read", len(raw), maxDocument)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return config{}, fmt.Errorf(`%s is not an object: write {"Network": "10.244.0.0/16"}`, clip(raw))
		}
		return config{}, fmt.Errorf("not JSON: %w", err)
	}
	c := config{values: make(map[string]json.RawMessage, len(members))}
	for name, value := range members {
		key, known := configKey(name)
		if _, twice := c.values[key]; twice {
			return config{}, fmt.Errorf("%s: given twice, in two spellings: remove one", key)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, value); err != nil {
			return config{}, fmt.Errorf("%s: %w", clip(key), err)
		}
		if compact.String() == "null" {
			continue
		}
		c.values[key] = compact.Bytes()
		if !known {
			c.unknown = append(c.unknown, key)
		}
	}
	slices.Sort(c.unknown)
	return c, nil
}

// configKey spells name as configKeys does; as in Go's JSON, and so in flannel, its case does not matter.
func configKey(name string) (key string, known bool) {
	for _, key := range configKeys {
		if strings.EqualFold(key, name) {
			return key, true
		}
	}
	return name, false
}

// setting reads the value of a key, or returns the default. kind completes the error "… is not".
func setting[T any](c config, key, kind string, byDefault T) (T, error) {
	raw, ok := c.values[key]
	if !ok {
		return byDefault, nil
	}
	var value T
	if err := json.Unmarshal(raw, &value); err != nil {
		return byDefault, fmt.Errorf("%s: %s is not %s", key, clip(raw), kind)
	}
	return value, nil
}

// marshal writes the configuration in its canonical form.
func (c config) marshal() []byte {
	out := []byte{'{'}
	for _, key := range slices.Concat(configKeys, c.unknown) {
		value, ok := c.values[key]
		if !ok {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		name, _ := json.Marshal(key) // a string always marshals
		out = append(append(append(out, name...), ':'), value...)
	}
	return append(out, '}')
}

// NetworkJSON turns what an operator typed into the network configuration to store: JSON, or only the range, like
// 10.244.0.0/16, fd00:244::/48 or 10.244.0.0/16,fd00:244::/48. What it returns passes [ParseNetwork]: compact, the
// known keys in flannel's spelling and the unknown ones kept. Where it names no backend, vxlan is written: what etcd has without
// one is flannel's udp.
func NetworkJSON(text string) ([]byte, error) {
	c, err := configOf(strings.TrimSpace(text))
	if err != nil {
		return nil, fmt.Errorf("network config: %w", err)
	}
	if _, ok := c.values["Backend"]; !ok {
		c.values["Backend"] = json.RawMessage(`{"Type":"vxlan"}`)
	}
	raw := c.marshal()
	if _, err := ParseNetwork(raw); err != nil {
		return nil, err
	}
	return raw, nil
}

func configOf(text string) (config, error) {
	if strings.HasPrefix(text, "{") {
		return parseConfig([]byte(text))
	}
	c := config{values: map[string]json.RawMessage{"EnableIPv4": json.RawMessage("false")}}
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return config{}, fmt.Errorf("%q is neither a JSON object nor a range like 10.244.0.0/16 "+
				"or 10.244.0.0/16,fd00:244::/48", clip(text))
		}
		key := "Network"
		if p.Addr().Is4() {
			delete(c.values, "EnableIPv4") // true is the default
		} else {
			key = "IPv6Network"
			c.values["EnableIPv6"] = json.RawMessage("true")
		}
		if _, twice := c.values[key]; twice {
			return config{}, fmt.Errorf("%q has two ranges of one family: at most one IPv4 and one IPv6 range", clip(text))
		}
		c.values[key] = json.RawMessage(strconv.Quote(p.Masked().String()))
	}
	return c, nil
}
