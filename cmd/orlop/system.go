package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) systemCommand() *cobra.Command {
	return group("system", "See to the daemon and this machine", `  orlop system info
  orlop system df`,
		a.infoCommand(), a.diskCommand(), a.pruneCommand(), a.upgradeKeeperCommand(), newTeardownCommand())
}

func (a *app) infoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Show the daemon, the machine and what is wrong with them",
		Example: `  orlop system info
  orlop system info -o json`,
		Args: cobra.NoArgs,
	}
	format := outputFlag(cmd, "table", "json", "yaml")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		i, err := call(cmd.Context(), a.client().system.Info, &orlopv1.InfoRequest{})
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if *format != "table" {
			return printMessage(out, *format, i)
		}
		state := "ready"
		if !i.Ready {
			state = "not ready: " + i.NotReady
		}
		started := "-"
		if i.StartedAt != nil {
			started = fmt.Sprintf("%s (%s ago)", i.StartedAt.AsTime().Local().Format(time.RFC3339), age(i.StartedAt))
		}
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, row := range [][2]string{
			{"Version", i.Version},
			{"Instance", i.Instance},
			{"State", state},
			{"Process", fmt.Sprint(i.Pid)},
			{"Started", started},
			{"Root", i.Root},
			{"Run", i.Run},
			{"Keeper", i.Keeper},
			{"System", fmt.Sprintf("%s, Linux %s, %s", i.OperatingSystem, i.Kernel, i.Architecture)},
			{"Machine", fmt.Sprintf("%d CPUs, %s memory", i.Cpus, size(i.MemoryBytes))},
			{"Control groups", i.Cgroup},
			{"Addresses", strings.Join(i.Addresses, ", ")},
			{"Pods", fmt.Sprintf("%d, %d running", i.Pods, i.PodsRunning)},
			{"Containers", fmt.Sprintf("%d running", i.ContainersRunning)},
			{"Images", fmt.Sprint(i.Images)},
			{"Volumes", fmt.Sprint(i.Volumes)},
		} {
			fmt.Fprintf(t, "%s:\t%s\n", row[0], clean(row[1]))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, w := range i.Warnings {
			fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+clean(w))
		}
		return nil
	}
	return cmd
}

func (a *app) diskCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "df",
		Short: "Show what takes disk space",
		Example: `  orlop system df
  orlop system df -o json`,
		Args: cobra.NoArgs,
	}
	format := outputFlag(cmd, listFormats...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		res, err := call(cmd.Context(), a.client().system.DiskUsage, &orlopv1.DiskUsageRequest{})
		if err != nil {
			return err
		}
		type item = *orlopv1.DiskUsageResponse_Item
		return printList(cmd.OutOrStdout(), *format, res.Items, []column[item]{
			{title: "WHAT", cell: item.GetWhat},
			{title: "COUNT", cell: func(i item) string { return fmt.Sprint(i.Count) }},
			{title: "ACTIVE", cell: func(i item) string { return fmt.Sprint(i.Active) }},
			{title: "SIZE", cell: func(i item) string { return size(i.SizeBytes) }},
			{title: "RECLAIMABLE", cell: func(i item) string { return size(i.ReclaimableBytes) }},
			{title: "CAPACITY", wide: true, cell: func(i item) string {
				if i.CapacityBytes == 0 {
					return ""
				}
				return size(i.CapacityBytes)
			}},
		})
	}
	return cmd
}

func (a *app) pruneCommand() *cobra.Command {
	req := &orlopv1.PruneRequest{}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Give back what nothing uses",
		Long: `Removes pods that have ended and images without a name that no pod uses, and gives the freed blocks of volumes
back to the disk. Flags restrict it to what they name. A volume is never removed.`,
		Example: `  orlop system prune
  orlop system prune --pods --all-images`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !req.Images && !req.AllImages && !req.Pods && !req.Volumes {
				req.Images, req.Pods, req.Volumes = true, true, true
			}
			res, err := call(cmd.Context(), a.client().system.Prune, req)
			if err != nil {
				return err
			}
			for _, s := range res.Removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed "+s)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s freed\n", size(res.FreedBytes))
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&req.Images, "images", false, "images without a name that no pod uses")
	f.BoolVarP(&req.AllImages, "all-images", "a", false, "every image that no pod uses")
	f.BoolVar(&req.Pods, "pods", false, "pods that have ended")
	f.BoolVar(&req.Volumes, "volumes", false, "freed blocks of volumes")
	return cmd
}

func (a *app) upgradeKeeperCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade-keeper [PATH]",
		Short: "Replace the keeper's program without touching a container",
		Long:  "Replaces the program of the process that holds containers, by PATH or by the configured one. Prints the new version.",
		Example: `  orlop system upgrade-keeper
  orlop system upgrade-keeper bin/orlop-keeper`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &orlopv1.UpgradeKeeperRequest{}
			if len(args) == 1 {
				var err error
				if req.Path, err = filepath.Abs(args[0]); err != nil {
					return err
				}
			}
			res, err := call(cmd.Context(), a.client().system.UpgradeKeeper, req)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), res.Version)
			return nil
		},
	}
}
