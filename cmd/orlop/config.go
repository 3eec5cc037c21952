package main

import (
	"fmt"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/spf13/cobra"
)

// newConfigCommand returns `orlop config`, which works without a daemon.
func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check or show the daemon's configuration",
		Example: `  orlop config check /etc/orlop/config.yaml
  orlop config show`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	path := func(args []string) string {
		if len(args) == 1 {
			return args[0]
		}
		return ""
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "check [FILE]",
			Short: "Say everything that is wrong with a configuration file",
			Long: `Reads FILE, or ` + config.DefaultPath + ` if it exists, as the daemon would, and says everything that is
wrong with it. The exit code is 0 if the daemon would accept it.`,
			Example: `  orlop config check
  orlop config check ./config.yaml`,
			Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := config.Load(path(args))
				if err != nil {
					return err
				}
				if err := image.CheckConfig(c.Image); err != nil { // files that it names
					return err
				}
				fmt.Fprintln(cmd.ErrOrStderr(), "the configuration is good")
				return nil
			},
		},
		&cobra.Command{
			Use:   "show [FILE]",
			Short: "Print the whole configuration, defaults included",
			Example: `  orlop config show
  orlop config show > /etc/orlop/config.yaml`,
			Args: cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := config.Load(path(args))
				if err != nil {
					return err
				}
				out, err := c.YAML()
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(out)
				return err
			},
		},
	)
	return cmd
}
