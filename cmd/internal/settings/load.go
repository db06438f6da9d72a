package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"sigs.k8s.io/yaml"
)

// daemonPrefix begins the name of every environment variable that sets something of overlayd's.
const daemonPrefix = "OVERLAYD_"

// Sources tells by a setting's name where its value came from: "--lease-ttl", "OVERLAYD_LEASE_TTL" or
// "/etc/overlayd/overlayd.yaml: lease-ttl". A setting that has its default is not in it.
type Sources map[string]string

// Wrap puts the source of the named setting before err, for a value that is well formed but makes no sense.
func (s Sources) Wrap(name string, err error) error {
	if from, ok := s[name]; ok {
		return fmt.Errorf("%s: %w", from, err)
	}
	return fmt.Errorf("--%s (default): %w", name, err)
}

// Load gives the flags of settings that the command line left alone their values from the environment or, failing
// that, from the configuration file. Every flag of settings must be a setting, and the command line parsed.
//
// Program is the name of the binary. Its environment variables are its name and the flag's in upper snake case;
// overlayctl hears OVERLAYCTL_RUN_DIR, else OVERLAYD_RUN_DIR. A variable with such a prefix that is no setting is
// an error, as is an unknown key of the file: both are typing mistakes that would otherwise be found much later.
// The file is the daemon's, so that it may hold any of the daemon's settings whoever reads it.
func Load(settings *pflag.FlagSet, program string) (Sources, error) {
	prefixes := slices.Compact([]string{strings.ToUpper(program) + "_", daemonPrefix})
	daemon := names(daemonFlags())
	for _, prefix := range prefixes {
		known := daemon
		if prefix != daemonPrefix {
			known = names(settings)
		}
		if err := checkEnviron(os.Environ(), prefix, known); err != nil {
			return nil, err
		}
	}

	v := viper.New()
	v.AllowEmptyEnv(true) // OVERLAYD_HTTP= turns HTTP off
	for _, name := range names(settings) {
		vars := []string{name}
		for _, prefix := range prefixes {
			vars = append(vars, envName(prefix, name))
		}
		if err := v.BindEnv(vars...); err != nil {
			return nil, err
		}
	}
	path, explicit := configPath(settings, v)
	file, err := readFile(path, explicit, without(daemon, configKey))
	if err != nil {
		return nil, err
	}
	if err := v.MergeConfigMap(file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return apply(settings, v, func(name string) string {
		for _, prefix := range prefixes {
			if _, ok := os.LookupEnv(envName(prefix, name)); ok {
				return envName(prefix, name)
			}
		}
		return path + ": " + name
	})
}

// apply sets each flag to what v has for it, unless the command line set it. From names the source of a value in v.
func apply(settings *pflag.FlagSet, v *viper.Viper, from func(name string) string) (Sources, error) {
	sources := Sources{}
	var errs []error
	settings.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			sources[f.Name] = "--" + f.Name
			return
		}
		value := v.Get(f.Name)
		if value == nil {
			return
		}
		sources[f.Name] = from(f.Name)
		if err := set(f.Value, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", sources[f.Name], err))
		}
	})
	return sources, errors.Join(errs...)
}

// set parses a value from the environment or the file as the flag would parse it.
func set(flag pflag.Value, value any) error {
	list, isList := flag.(pflag.SliceValue)
	if items, ok := value.([]any); ok {
		if !isList {
			return errors.New("must be one value, not a list")
		}
		return list.Replace(texts(items))
	}
	text := fmt.Sprint(value)
	switch flag.Type() {
	case "stringArray": // what may hold commas is never split
		return list.Replace([]string{text})
	case "stringSlice":
		return list.Replace(split(text))
	}
	if err := flag.Set(text); err != nil {
		return fmt.Errorf("invalid value %q: %w", text, err)
	}
	return nil
}

// configPath is the configuration file to read, and whether somebody asked for it.
func configPath(settings *pflag.FlagSet, v *viper.Viper) (path string, explicit bool) {
	f := settings.Lookup(configKey)
	if env := v.GetString(configKey); env != "" && !f.Changed {
		return env, true
	}
	return f.Value.String(), f.Changed
}

// readFile parses a configuration file. Viper does not read it itself because it would fold the case of the keys
// within network, and take nested keys apart.
func readFile(path string, explicit bool, known []string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !explicit {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	var file map[string]any
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var errs []error
	for key, value := range file {
		if !slices.Contains(known, key) {
			errs = append(errs, fmt.Errorf("%s: unknown key %q%s", path, key, suggest("", key, known)))
			continue
		}
		if object, ok := value.(map[string]any); ok {
			if key != "network" { // the only setting that has a structure
				errs = append(errs, fmt.Errorf("%s: %s: must not be a mapping", path, key))
				continue
			}
			text, err := json.Marshal(object)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, key, err)
			}
			file[key] = string(text)
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return file, errors.Join(errs...)
}

// checkEnviron refuses variables that begin with prefix and set nothing.
func checkEnviron(environ []string, prefix string, known []string) error {
	vars := make([]string, len(known))
	for i, name := range known {
		vars[i] = envName("", name)
	}
	var errs []error
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if rest, ok := strings.CutPrefix(name, prefix); ok && !slices.Contains(vars, rest) {
			errs = append(errs, fmt.Errorf("unknown environment variable %s%s", name, suggest(prefix, rest, vars)))
		}
	}
	return errors.Join(errs...)
}

// suggest is " (did you mean …?)" with a known name near to name, after prefix, or nothing if none is near: by cobra's
// measure, which overlayctl's commands go by too.
func suggest(prefix, name string, known []string) string {
	names := cobra.Command{SuggestionsMinimumDistance: 2}
	for _, k := range known {
		names.AddCommand(&cobra.Command{Use: k, Run: func(*cobra.Command, []string) {}})
	}
	if near := names.SuggestionsFor(name); len(near) > 0 {
		return fmt.Sprintf(" (did you mean %q?)", prefix+near[0])
	}
	return ""
}

func daemonFlags() *pflag.FlagSet {
	var d Daemon
	fs := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	d.Register(fs)
	return fs
}

func names(fs *pflag.FlagSet) []string {
	var all []string
	fs.VisitAll(func(f *pflag.Flag) { all = append(all, f.Name) })
	return all
}

func without(all []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == name })
}

func envName(prefix, name string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

func texts(items []any) []string {
	out := make([]string, len(items))
	for i, item := range items {
		out[i] = fmt.Sprint(item)
	}
	return out
}

// split parses a comma-separated list; blanks around the items do not count, nor do empty items.
func split(text string) []string {
	var out []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}
