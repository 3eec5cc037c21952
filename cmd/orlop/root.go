package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

const defaultSocket = "/run/orlop/orlop.sock"

// app is what all commands share: the global flags and the client made from them.
type app struct {
	socket    string
	namespace string

	made *client
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "orlop",
		Short: "Run pods on this machine",
		Long: `Orlop runs Kubernetes pods on one Linux machine, without Kubernetes: manifests go in, containers run.

Data goes to standard output, talk to standard error. Exit codes: 0 success, 1 failure, 2 wrong usage, 3 not
found, 4 exists already, in use, or not in the state for it, 5 daemon not reachable, 124 timeout, 130
interrupted. orlop exec and orlop attach pass on the code of the process.`,
		Example: `  orlop apply -f examples/notes.yaml --wait
  orlop ps
  orlop logs notes -c web -f`,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", cmp.Or(os.Getenv("ORLOP_SOCKET"), defaultSocket), "the daemon's control socket (also $ORLOP_SOCKET)")
	f.StringVarP(&a.namespace, "namespace", "n", "default", "namespace of what is named")

	root.AddGroup(
		&cobra.Group{ID: "pods", Title: "Pods:"},
		&cobra.Group{ID: "storage", Title: "Images, volumes and configuration:"},
		&cobra.Group{ID: "host", Title: "This machine:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("pods", a.applyCommand(), a.deleteCommand(), a.psCommand(), a.inspectCommand(), a.logsCommand(), a.execCommand(),
		a.attachCommand(), a.cpCommand(), a.portForwardCommand(), a.eventsCommand(), a.statsCommand())
	add("storage", a.imageCommand(), a.volumeCommand(), a.configsCommand("configmap"), a.configsCommand("secret"))
	add("host", newDaemonCommand(), newConfigCommand(), a.systemCommand(), a.migrateCommand(), a.versionCommand(), newManCommand())

	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%v", err) })
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	walk(root, func(c *cobra.Command) {
		check := c.Args
		if check == nil {
			return
		}
		c.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if _, ok := err.(*usageError); err == nil || ok {
				return err
			}
			return usage(cmd, "%v", err)
		}
	})
	return root
}

// walk calls do for c and everything below it.
func walk(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		walk(sub, do)
	}
}

// group returns a command that only has others below it.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Example: example, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(subs...)
	return c
}

// noArgs is for commands with others below them: an argument is one that does not exist.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = "; did you mean: " + strings.Join(s, ", ")
	}
	return usage(cmd, "%s has no command %q%s", cmd.CommandPath(), args[0], hint)
}

// allNamespaces adds -A and returns the namespace to list: "" is all.
func (a *app) allNamespaces(cmd *cobra.Command) func() string {
	var all bool
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	return func() string {
		if all {
			return ""
		}
		return a.namespace
	}
}

// qualified is how talk names an object: with its namespace where it is not the default one.
func qualified(namespace, name string) string {
	if namespace == "" || namespace == "default" {
		return name
	}
	return fmt.Sprintf("%s/%s", namespace, name)
}
