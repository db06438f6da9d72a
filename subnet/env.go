package subnet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
)

// Env is what subnet.env tells container runtimes of the host.
type Env struct {
	Networks []netip.Prefix // the overlay's ranges, masked
	Subnets  []netip.Prefix // the host's subnet of each family with its gateway's address, like 10.5.72.1/24
	MTU      int            // of containers, in bytes; 0 leaves it to the runtime
	IPMasq   bool           // the daemon masquerades, so the runtime need not
}

// envKeys are flannel's names of one family's lines.
var envKeys = []struct {
	family          Family
	network, subnet string
}{
	{IPv4, "FLANNEL_NETWORK", "FLANNEL_SUBNET"},
	{IPv6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"},
}

const (
	envMTU    = "FLANNEL_MTU"
	envIPMasq = "FLANNEL_IPMASQ"
)

// Gateway returns the subnet with its first usable address, which the host's bridge takes.
func Gateway(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

// Format returns the file as flannel writes it, line for line.
func (e Env) Format() []byte {
	var out bytes.Buffer
	for _, keys := range envKeys {
		if networks := ofFamily(e.Networks, keys.family); len(networks) > 0 {
			fmt.Fprintf(&out, "%s=%s\n", keys.network, Join(networks))
		}
		if subnets := ofFamily(e.Subnets, keys.family); len(subnets) > 0 {
			fmt.Fprintf(&out, "%s=%s\n", keys.subnet, Join(subnets))
		}
	}
	fmt.Fprintf(&out, "%s=%d\n%s=%t\n", envMTU, e.MTU, envIPMasq, e.IPMasq)
	return out.Bytes()
}

func ofFamily(prefixes []netip.Prefix, f Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return FamilyOf(p.Addr()) != f })
}

// Join writes prefixes with commas between them.
func Join(prefixes []netip.Prefix) string {
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}

// ParseEnv reads a subnet.env. A family may have several networks, separated by commas, but has one subnet. A file
// that lacks a line is refused, since a reader may have met it half written. Unknown lines are passed over.
func ParseEnv(raw []byte) (Env, error) {
	if len(raw) > maxDocument {
		return Env{}, fmt.Errorf("subnet env: %d bytes are too many: at most %d are read", len(raw), maxDocument)
	}
	e, err := parseEnv(string(raw))
	if err != nil {
		return Env{}, fmt.Errorf("subnet env: %w", err)
	}
	return e, nil
}

func parseEnv(text string) (e Env, err error) {
	vars, err := parseVars(text)
	if err != nil {
		return Env{}, err
	}
	for _, keys := range envKeys {
		if vars[keys.network] == "" && vars[keys.subnet] == "" {
			continue
		}
		networks, err := parseRanges(vars, keys.network, keys.family)
		if err != nil {
			return Env{}, err
		}
		subnets, err := parseRanges(vars, keys.subnet, keys.family)
		if err != nil {
			return Env{}, err
		}
		if len(subnets) > 1 {
			return Env{}, fmt.Errorf("%s: %d subnets, but a host has one", keys.subnet, len(subnets))
		}
		for _, p := range networks {
			e.Networks = append(e.Networks, p.Masked())
		}
		e.Subnets = append(e.Subnets, subnets...)
	}
	if len(e.Subnets) == 0 {
		return Env{}, missing(envKeys[0].network + " or " + envKeys[1].network)
	}
	if e.MTU, err = parseMTU(vars); err != nil {
		return Env{}, err
	}
	e.IPMasq, err = parseIPMasq(vars)
	return e, err
}

func parseMTU(vars map[string]string) (int, error) {
	text, ok := vars[envMTU]
	if !ok {
		return 0, missing(envMTU)
	}
	mtu, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number of bytes up to 65535", envMTU, clip(text))
	}
	return int(mtu), nil
}

func parseIPMasq(vars map[string]string) (bool, error) {
	text, ok := vars[envIPMasq]
	switch {
	case !ok:
		return false, missing(envIPMasq)
	case text != "true" && text != "false": // anything else fails in flannel's docker script
		return false, fmt.Errorf("%s: %q is neither true nor false", envIPMasq, clip(text))
	}
	return text == "true", nil
}

func missing(key string) error {
	return fmt.Errorf("line %s is missing: the file is incomplete or still being written", key)
}

func parseRanges(vars map[string]string, key string, f Family) ([]netip.Prefix, error) {
	if vars[key] == "" {
		return nil, missing(key)
	}
	var ranges []netip.Prefix
	for text := range strings.SplitSeq(vars[key], ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || FamilyOf(p.Addr()) != f || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s: %q is not an %s range in the form <address>/<length>", key, clip(text), f)
		}
		ranges = append(ranges, p)
	}
	return ranges, nil
}

// parseVars reads lines of the form [export ]NAME=value, with the comments and quotes of a shell.
func parseVars(text string) (map[string]string, error) {
	vars := make(map[string]string)
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok {
			return nil, fmt.Errorf("line %d: %q has no =", number, clip(line))
		}
		value, err := unquote(strings.TrimSpace(value))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		vars[strings.TrimSpace(name)] = value
	}
	return vars, nil
}

// unquote returns a value without its quotes and without the comment behind it.
func unquote(value string) (string, error) {
	if value != "" && (value[0] == '"' || value[0] == '\'') {
		inside, rest, closed := strings.Cut(value[1:], value[:1])
		if rest = strings.TrimSpace(rest); !closed || rest != "" && rest[0] != '#' {
			return "", fmt.Errorf("%s: the quotes do not match", clip(value))
		}
		return inside, nil
	}
	value, _, _ = strings.Cut(" "+value, " #")
	return strings.TrimSpace(value), nil
}

// ReadEnv reads the subnet.env at path. The error wraps [fs.ErrNotExist] if there is none.
func ReadEnv(path string) (Env, error) {
	raw, err := ReadFile(path)
	if err != nil {
		return Env{}, fmt.Errorf("subnet env: %w", err)
	}
	e, err := ParseEnv(raw)
	if err != nil {
		return Env{}, fmt.Errorf("%s: %w", path, err)
	}
	return e, nil
}

// WriteEnv replaces the subnet.env at path atomically and durably; it makes missing directories. Whatever the umask,
// everybody may read the file, and enter the directories that it made. It fails where [ParseEnv] would.
func WriteEnv(path string, e Env) error {
	raw := e.Format()
	if _, err := ParseEnv(raw); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("subnet env: %w", err)
	}
	err := replaceFile(path, raw)
	if failed, ok := errors.AsType[*fs.PathError](err); ok { // it has a temporary file's name, which is another each time
		err = fmt.Errorf("%s: %w", path, failed.Err)
	}
	if err != nil {
		return fmt.Errorf("subnet env: %w", err)
	}
	return nil
}

// replaceFile is renameio.WriteFile, which would keep the mode of a file that is there.
func replaceFile(path string, data []byte) error {
	file, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	defer file.Cleanup()
	if _, err := file.Write(data); err != nil {
		return err
	}
	return file.CloseAtomicallyReplace()
}

// makeDir is os.MkdirAll without the umask. It leaves directories that are there as they are.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}
