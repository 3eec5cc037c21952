package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and, if it is reachable, of the daemon",
		Example: `  orlop version
  orlop version -o json`,
		Args: cobra.NoArgs,
	}
	format := outputFlag(cmd, "table", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
		defer cancel()
		both := map[string]json.RawMessage{}
		mine := &orlopv1.VersionResponse{Version: version, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
		daemon, err := call(ctx, a.client().system.Version, &orlopv1.VersionRequest{})
		var dial *dialError
		if err != nil && !errors.As(err, &dial) {
			return err
		}
		for name, v := range map[string]*orlopv1.VersionResponse{"client": mine, "daemon": daemon} {
			if v == nil {
				continue
			}
			if both[name], err = marshal(v); err != nil {
				return err
			}
		}
		out := cmd.OutOrStdout()
		if *format != "table" {
			j, err := json.Marshal(both)
			if err != nil {
				return err
			}
			return printJSON(out, *format, j)
		}
		fmt.Fprintf(out, "client  %s  %s  %s\n", mine.Version, mine.GoVersion, mine.Platform)
		if daemon == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "no daemon answers at %s\n", a.socket)
			return nil
		}
		_, err = fmt.Fprintf(out, "daemon  %s  %s  %s\n", daemon.Version, daemon.GoVersion, daemon.Platform)
		return err
	}
	return cmd
}
