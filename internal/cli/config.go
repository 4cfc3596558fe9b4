package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"nixfleet.dev/nixfleet/internal/operator"
	"nixfleet.dev/nixfleet/internal/release/bootstrap"
	"nixfleet.dev/nixfleet/internal/ui"
)

const defaultContext = "default"

// configuration is config.toml: how an operator reaches control planes.
type configuration struct {
	Contexts map[string]operator.Context `toml:"contexts"`
}

// contextVariables are the environment's way to say what a context says.
var contextVariables = []struct {
	name  string
	field func(*operator.Context) *string
}{
	{"NIXFLEET_CONTROL_PLANE", func(c *operator.Context) *string { return &c.ControlPlane }},
	{"NIXFLEET_CA", func(c *operator.Context) *string { return &c.CA }},
	{"NIXFLEET_CERT", func(c *operator.Context) *string { return &c.Cert }},
	{"NIXFLEET_KEY", func(c *operator.Context) *string { return &c.Key }},
}

// configPath returns where the operator's configuration is, or would be.
func (a *App) configPath() (string, error) {
	if a.configFile != "" {
		return filepath.Abs(a.configFile)
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", usagef("there is no place for a configuration (%w); give one with --config", err)
	}
	return filepath.Join(dir, "nixfleet", "config.toml"), nil
}

// loadConfig reads the operator's configuration: an empty one where there is none and none was named.
func (a *App) loadConfig() (configuration, string, error) {
	path, err := a.configPath()
	if err != nil {
		return configuration{}, "", err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && a.configFile == "" {
		return configuration{}, path, nil
	}
	if err != nil {
		return configuration{}, path, fmt.Errorf("reading the configuration: %w", err)
	}
	var config configuration
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&config); err != nil {
		if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return config, path, fmt.Errorf("reading %s: it has keys that nixfleet does not know:\n%s", path, unknown.String())
		}
		return config, path, fmt.Errorf("reading %s: %w", path, err)
	}
	return config, path, nil
}

// Context returns how to reach the control plane: the chosen context of the configuration, with what the
// environment says in front. Paths in a configuration are relative to its folder.
func (a *App) Context() (operator.Context, error) {
	config, path, err := a.loadConfig()
	if err != nil {
		return operator.Context{}, err
	}
	c, found := config.Contexts[a.contextName]
	if !found && a.contextName != defaultContext {
		return c, usagef("%s has no context %q", path, a.contextName)
	}
	for _, file := range []*string{&c.CA, &c.Cert, &c.Key} {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(filepath.Dir(path), *file)
		}
	}
	for _, v := range contextVariables {
		if value := os.Getenv(v.name); value != "" {
			*v.field(&c) = value
		}
	}
	if c.ControlPlane == "" {
		return c, usagef("no control plane is configured: %s has no context %q; make one with nixfleet config init", path, a.contextName)
	}
	return c, nil
}

func newConfig(app *App) *cobra.Command {
	return group("config", "The operator's own configuration", newConfigInit(app), newConfigShow(app))
}

func newConfigShow(app *App) *cobra.Command {
	return app.addJSON(&cobra.Command{
		Use:     "show",
		Short:   "Show which control plane commands talk to, and as whom",
		Args:    noArgs,
		Example: examples("nixfleet config show", "nixfleet config show --context staging --json"),
		RunE: func(*cobra.Command, []string) error {
			c, err := app.Context()
			if err != nil {
				return err
			}
			path, err := app.configPath()
			if err != nil {
				return err
			}
			shown := struct {
				File         string `json:"file"`
				Context      string `json:"context"`
				ControlPlane string `json:"controlPlane"`
				CA           string `json:"ca"`
				Cert         string `json:"cert"`
				Key          string `json:"key"`
			}{path, app.contextName, c.ControlPlane, c.CA, c.Cert, c.Key}
			return app.print(shown, func(w io.Writer) error {
				return ui.Table(w, []string{"SETTING", "VALUE"}, [][]string{
					{"file", shown.File}, {"context", shown.Context}, {"control_plane", shown.ControlPlane},
					{"ca", shown.CA}, {"cert", shown.Cert}, {"key", shown.Key},
				})
			})
		},
	})
}

func newConfigInit(app *App) *cobra.Command {
	var from string
	var c operator.Context
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Add a context to the operator's configuration",
		Long:  "Adds a context to the operator's configuration, which is made where it is missing. A context that is\nthere already is left alone.",
		Args:  noArgs,
		Example: examples("nixfleet config init --from ./fleet",
			"nixfleet config init --context prod --control-plane https://cp.fleet.example:8443 --ca ca.pem --cert me.pem --key me.key"),
		RunE: func(*cobra.Command, []string) error {
			if from != "" {
				read, err := contextOf(from)
				if err != nil {
					return err
				}
				c = read
			}
			if c.ControlPlane == "" || c.CA == "" || c.Cert == "" || c.Key == "" {
				return usagef("give --from a fleet's directory, or all of --control-plane, --ca, --cert and --key")
			}
			return app.addContext(c)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the directory that nixfleet init made")
	cmd.Flags().StringVar(&c.ControlPlane, "control-plane", "", "the URL of the control plane")
	cmd.Flags().StringVar(&c.CA, "ca", "", "the CA that the control plane's certificate is checked by")
	cmd.Flags().StringVar(&c.Cert, "cert", "", "the operator's certificate")
	cmd.Flags().StringVar(&c.Key, "key", "", "its key")
	return cmd
}

// contextOf returns the default context of a fleet's directory.
func contextOf(dir string) (operator.Context, error) {
	layout, err := bootstrap.At(dir)
	if err != nil {
		return operator.Context{}, err
	}
	there := &App{configFile: layout.OperatorConfig, contextName: defaultContext}
	config, _, err := there.loadConfig()
	return config.Contexts[defaultContext], err
}

// addContext writes the configuration with one more context.
func (a *App) addContext(c operator.Context) error {
	path, err := a.configPath()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if !printable(a.contextName) {
		return usagef("--context %q is not a name that a configuration can hold", a.contextName)
	}
	var config configuration
	if err := toml.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if _, there := config.Contexts[a.contextName]; there {
		return fmt.Errorf("%s has a context %q already; choose another name with --context, or edit the file", path, a.contextName)
	}
	for _, file := range []*string{&c.CA, &c.Cert, &c.Key} {
		if *file, err = filepath.Abs(*file); err != nil {
			return fmt.Errorf("finding a file: %w", err)
		}
	}
	values, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding the configuration: %w", err)
	}
	added := fmt.Appendf(nil, "[contexts.%q]\n%s", a.contextName, values)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the configuration's folder: %w", err)
	}
	// What is there stays as it was written, comments and all.
	if len(text) > 0 {
		text = append(bytes.TrimRight(text, "\n"), "\n\n"...)
	}
	if err := replaceFile(path, append(text, added...)); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	fmt.Fprintf(a.Stderr, "Context %q is in %s.\n", a.contextName, path)
	return nil
}

// replaceFile writes a file that only its owner reads, whole or not at all.
func replaceFile(path string, data []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".config-")
	if err != nil {
		return err
	}
	_, err = temp.Write(data)
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// printable says whether s can stand in quotes as it is.
func printable(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
