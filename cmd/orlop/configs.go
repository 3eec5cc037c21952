package main

import (
	"fmt"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

// configsCommand is `orlop configmap` or `orlop secret`.
func (a *app) configsCommand(word string) *cobra.Command {
	kind, plural := kindOf(word), "config maps"
	if kind == "Secret" {
		plural = "secrets"
	}
	list := &cobra.Command{
		Use:   "ls",
		Short: "List " + plural,
		Example: fmt.Sprintf(`  orlop %s ls
  orlop %s ls -A -o json`, word, word),
		Args: cobra.NoArgs,
	}
	namespace := a.allNamespaces(list)
	format := outputFlag(list, listFormats...)
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		res, err := call(cmd.Context(), a.client().configs.List, &orlopv1.ListConfigsRequest{Kind: kind, Namespace: namespace()})
		if err != nil {
			return err
		}
		return printList(cmd.OutOrStdout(), *format, res.Configs, configColumns(namespace() == "", kind == "Secret"))
	}
	return group(word, "List and delete "+plural, fmt.Sprintf("  orlop %s ls\n  orlop %s rm notes", word, word),
		list, a.removeCommand(kind, fmt.Sprintf("  orlop %s rm notes\n  orlop %s rm notes --ignore-missing", word, word)))
}

func configColumns(namespace, secret bool) []column[*orlopv1.Config] {
	type config = *orlopv1.Config
	bytes := func(c config) string {
		var n int64
		for _, i := range c.Items {
			n += i.SizeBytes
		}
		return size(n)
	}
	keys := func(c config) string {
		var list []string
		for _, i := range c.Items {
			list = append(list, i.Key)
		}
		return joined(list)
	}
	columns := []column[config]{
		{title: "NAMESPACE", wide: !namespace, cell: config.GetNamespace},
		{title: "NAME", cell: config.GetName},
	}
	if secret {
		columns = append(columns, column[config]{title: "TYPE", cell: config.GetType})
	}
	return append(columns,
		column[config]{title: "ITEMS", cell: func(c config) string { return fmt.Sprint(len(c.Items)) }},
		column[config]{title: "SIZE", cell: bytes},
		column[config]{title: "AGE", cell: func(c config) string { return age(c.CreatedAt) }},
		column[config]{title: "IMMUTABLE", wide: true, cell: func(c config) string { return fmt.Sprint(c.Immutable) }},
		column[config]{title: "KEYS", wide: true, cell: keys},
		column[config]{title: "LABELS", wide: true, cell: func(c config) string { return labels(c.Labels) }},
	)
}
