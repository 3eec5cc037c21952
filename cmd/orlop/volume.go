package main

import (
	"fmt"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) volumeCommand() *cobra.Command {
	return group("volume", "Manage claims and their volumes", `  orlop volume ls
  orlop volume rm notes-data`,
		a.volumeListCommand(), a.volumeInspectCommand(),
		a.removeCommand("PersistentVolumeClaim", `  orlop volume rm notes-data
  orlop volume rm scratch --ignore-missing`))
}

func (a *app) volumeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List claims and what their volumes hold",
		Example: `  orlop volume ls
  orlop volume ls -A -o wide`,
		Args: cobra.NoArgs,
	}
	namespace := a.allNamespaces(cmd)
	format := outputFlag(cmd, listFormats...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		res, err := call(cmd.Context(), a.client().volumes.List, &orlopv1.ListVolumesRequest{Namespace: namespace()})
		if err != nil {
			return err
		}
		return printList(cmd.OutOrStdout(), *format, res.Volumes, volumeColumns(namespace() == ""))
	}
	return cmd
}

func volumeColumns(namespace bool) []column[*orlopv1.Volume] {
	type volume = *orlopv1.Volume
	return []column[volume]{
		{title: "NAMESPACE", wide: !namespace, cell: volume.GetNamespace},
		{title: "NAME", cell: volume.GetName},
		{title: "STATUS", cell: volume.GetPhase},
		{title: "SIZE", cell: func(v volume) string { return size(v.SizeBytes) }},
		{title: "USED", cell: func(v volume) string { return size(v.UsedBytes) }},
		{title: "ACCESS", cell: func(v volume) string { return joined(v.AccessModes) }},
		{title: "AGE", cell: func(v volume) string { return age(v.CreatedAt) }},
		{title: "USED BY", cell: func(v volume) string { return joined(v.UsedBy) }},
		{title: "MODE", wide: true, cell: volume.GetMode},
		{title: "CLASS", wide: true, cell: volume.GetClass},
		{title: "RESIZING", wide: true, cell: func(v volume) string { return fmt.Sprint(v.ResizePending) }},
		{title: "PATH", wide: true, cell: volume.GetPath},
	}
}

func (a *app) volumeInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Print everything about a claim and its volume",
		Example: `  orlop volume inspect notes-data
  orlop volume inspect notes-data -o json`,
		Args: cobra.ExactArgs(1),
	}
	format := outputFlag(cmd, "yaml", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := a.get(cmd, "pvc", args[0], false)
		if err != nil {
			return err
		}
		return printMessage(cmd.OutOrStdout(), *format, m)
	}
	return cmd
}
