package main

import (
	"context"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

func (a *app) inspectCommand() *cobra.Command {
	var reveal bool
	cmd := &cobra.Command{
		Use:   "inspect [pod|container|pvc|configmap|secret|image] NAME",
		Short: "Print everything about an object",
		Long: `Prints everything there is to know about an object. Without a kind it is a pod. A pod carries its manifest with
its status, as Kubernetes writes it, under "object". A container is named POD/CONTAINER.`,
		Example: `  orlop inspect notes
  orlop inspect container notes/web -o json
  orlop inspect secret token --reveal`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completePods,
	}
	format := outputFlag(cmd, "yaml", "json")
	cmd.Flags().BoolVar(&reveal, "reveal", false, "a secret's values too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kind, name := "pod", args[0]
		if len(args) == 2 {
			kind, name = args[0], args[1]
		}
		m, err := a.get(cmd, kind, name, reveal)
		if err != nil {
			return err
		}
		return printMessage(cmd.OutOrStdout(), *format, m)
	}
	return cmd
}

func (a *app) get(cmd *cobra.Command, kind, name string, reveal bool) (proto.Message, error) {
	ctx, c := cmd.Context(), a.client()
	switch kind {
	case "container":
		return a.getContainer(ctx, cmd, name)
	case "image":
		res, err := call(ctx, c.images.Inspect, &orlopv1.InspectImageRequest{Image: name})
		return res.GetImage(), err
	}
	switch k := kindOf(kind); k {
	case "Pod":
		res, err := call(ctx, c.pods.Get, &orlopv1.GetPodRequest{Namespace: a.namespace, Name: name, WithObject: true})
		return res.GetPod(), err
	case "PersistentVolumeClaim":
		res, err := call(ctx, c.volumes.Get, &orlopv1.GetVolumeRequest{Namespace: a.namespace, Name: name})
		return res.GetVolume(), err
	case "ConfigMap", "Secret":
		res, err := call(ctx, c.configs.Get, &orlopv1.GetConfigRequest{Kind: k, Namespace: a.namespace, Name: name, Reveal: reveal})
		return res.GetConfig(), err
	}
	return nil, usage(cmd, "%q is no kind; there are pod, container, pvc, configmap, secret and image", kind)
}

func (a *app) getContainer(ctx context.Context, cmd *cobra.Command, name string) (proto.Message, error) {
	pod, container, ok := cutLast(name, '/')
	if !ok {
		return nil, usage(cmd, "name the container as POD/CONTAINER, not %q", name)
	}
	res, err := call(ctx, a.client().pods.Get, &orlopv1.GetPodRequest{Namespace: a.namespace, Name: pod})
	if err != nil {
		return nil, err
	}
	for _, c := range res.Pod.Containers {
		if c.Name == container {
			return c, nil
		}
	}
	return nil, errs.New(errs.NotFound, "pod %s has no container %s; orlop inspect %s shows those it has", pod, container, pod)
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}
