package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) psCommand() *cobra.Command {
	var selector string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List pods",
		Example: `  orlop ps
  orlop ps -A -o wide
  orlop ps -l app=notes -o json`,
		Args: cobra.NoArgs,
	}
	namespace := a.allNamespaces(cmd)
	format := outputFlag(cmd, listFormats...)
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "labels: a=b,c!=d,e,!f")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		res, err := call(cmd.Context(), a.client().pods.List, &orlopv1.ListPodsRequest{Namespace: namespace(), Selector: selector})
		if err != nil {
			return err
		}
		return printList(cmd.OutOrStdout(), *format, res.Pods, podColumns(namespace() == ""))
	}
	return cmd
}

func podColumns(namespace bool) []column[*orlopv1.Pod] {
	type pod = *orlopv1.Pod
	return []column[pod]{
		{title: "NAMESPACE", wide: !namespace, cell: pod.GetNamespace},
		{title: "NAME", cell: pod.GetName},
		{title: "READY", cell: readyCount},
		{title: "STATUS", cell: pod.GetStatus},
		{title: "RESTARTS", cell: func(p pod) string {
			var n int32
			for _, c := range p.Containers {
				n += c.Restarts
			}
			return fmt.Sprint(n)
		}},
		{title: "AGE", cell: func(p pod) string { return age(p.CreatedAt) }},
		{title: "IP", cell: func(p pod) string { return joined(p.Ips) }},
		{title: "PORTS", wide: true, cell: podPorts},
		{title: "IMAGES", wide: true, cell: func(p pod) string {
			var images []string
			for _, c := range p.Containers {
				if c.Role != orlopv1.Container_ROLE_INIT && !slices.Contains(images, c.Image) {
					images = append(images, c.Image)
				}
			}
			return joined(images)
		}},
		{title: "LABELS", wide: true, cell: func(p pod) string { return labels(p.Labels) }},
		{title: "ID", wide: true, cell: func(p pod) string { return shortID(p.Id) }},
	}
}

// readyCount counts the containers that are to stay: all but init containers.
func readyCount(p *orlopv1.Pod) string {
	ready, all := 0, 0
	for _, c := range p.Containers {
		if c.Role == orlopv1.Container_ROLE_INIT {
			continue
		}
		all++
		if c.Ready {
			ready++
		}
	}
	return fmt.Sprintf("%d/%d", ready, all)
}

func podPorts(p *orlopv1.Pod) string {
	var ports []string
	for _, c := range p.Containers {
		for _, m := range c.Ports {
			s := fmt.Sprintf("%d/%s", m.Port, strings.ToLower(m.Protocol))
			if m.HostPort != 0 {
				s = fmt.Sprintf("%s:%d->%s", m.HostIp, m.HostPort, s)
			}
			ports = append(ports, strings.TrimPrefix(s, ":"))
		}
	}
	return joined(ports)
}

func labels(m map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, k+"="+m[k])
	}
	return joined(list)
}

// completePods completes the name of a pod, as the first argument.
func (a *app) completePods(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	res, err := call(cmd.Context(), a.client().pods.List, &orlopv1.ListPodsRequest{Namespace: a.namespace})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range res.Pods {
		names = append(names, p.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
