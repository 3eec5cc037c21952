package main

import (
	"strings"
	"time"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

// kindOf returns the kind that a word of the command line means, or "".
func kindOf(word string) string {
	switch strings.ToLower(word) {
	case "pod", "pods", "po":
		return "Pod"
	case "pvc", "persistentvolumeclaim", "persistentvolumeclaims", "volume":
		return "PersistentVolumeClaim"
	case "configmap", "configmaps", "cm":
		return "ConfigMap"
	case "secret", "secrets":
		return "Secret"
	}
	return ""
}

func (a *app) deleteCommand() *cobra.Command {
	var paths []string
	var grace float64
	var noWait, ignore bool
	cmd := &cobra.Command{
		Use:   "delete pod|pvc|configmap|secret NAME... | -f FILE",
		Short: "Delete objects",
		Long: `Deletes what is named, or what manifests describe. Pods are gone when the command ends. Deleting a claim
deletes its data, and is refused while a pod uses it.`,
		Example: `  orlop delete pod notes
  orlop delete pvc notes-data --ignore-missing
  orlop delete -f examples/notes.yaml --grace 0`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &orlopv1.DeleteRequest{Namespace: a.namespace, NoWait: noWait, IgnoreMissing: ignore}
			switch {
			case len(paths) > 0 && len(args) > 0:
				return usage(cmd, "give names or -f, not both")
			case len(paths) > 0:
				files, err := readFiles(cmd, paths)
				if err != nil {
					return err
				}
				req.Files = files
			case len(args) == 0:
				return usage(cmd, "say what to delete: a kind and names, or -f FILE")
			default:
				kind := kindOf(args[0])
				if kind == "" {
					return usage(cmd, "%q is no kind; there are pod, pvc, configmap and secret", args[0])
				}
				if len(args) == 1 {
					return usage(cmd, "name the %s to delete", kindWord(kind))
				}
				for _, name := range args[1:] {
					req.Refs = append(req.Refs, &orlopv1.Ref{Kind: kind, Namespace: a.namespace, Name: name})
				}
			}
			if cmd.Flags().Changed("grace") {
				if grace < 0 {
					return usage(cmd, "--grace cannot be negative")
				}
				req.Grace = durationpb.New(time.Duration(grace * float64(time.Second)))
			}
			return a.delete(cmd, req)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&paths, "filename", "f", nil, "delete what this manifest describes; may be repeated")
	f.Float64Var(&grace, "grace", 0, "seconds that a pod may take to stop; 0 kills at once (default: what its manifest says)")
	f.BoolVar(&noWait, "no-wait", false, "do not wait until pods are gone")
	f.BoolVar(&ignore, "ignore-missing", false, "what does not exist is no error")
	return cmd
}

func (a *app) delete(cmd *cobra.Command, req *orlopv1.DeleteRequest) error {
	res, err := call(cmd.Context(), a.client().manifests.Delete, req)
	if err != nil {
		return err
	}
	return printResults(cmd.OutOrStdout(), cmd.ErrOrStderr(), res.Results)
}

// removeCommand is `rm` of a kind.
func (a *app) removeCommand(kind, example string) *cobra.Command {
	var ignore bool
	word := kindWord(kind)
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Short:   "Delete them, as orlop delete " + word + " does",
		Example: example,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &orlopv1.DeleteRequest{Namespace: a.namespace, IgnoreMissing: ignore}
			for _, name := range args {
				req.Refs = append(req.Refs, &orlopv1.Ref{Kind: kind, Namespace: a.namespace, Name: name})
			}
			return a.delete(cmd, req)
		},
	}
	cmd.Flags().BoolVar(&ignore, "ignore-missing", false, "what does not exist is no error")
	return cmd
}
