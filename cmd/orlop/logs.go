package main

import (
	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/spf13/cobra"
)

func (a *app) logsCommand() *cobra.Command {
	req := &orlopv1.LogsRequest{}
	var tail int64
	var from string
	cmd := &cobra.Command{
		Use:   "logs POD",
		Short: "Print what a container wrote",
		Long: `Prints what a container wrote to its standard output and standard error, in the order of writing, to standard
output. With -f it goes on until the container has ended for good or its pod is gone.`,
		Example: `  orlop logs notes -c web
  orlop logs notes -c web -f --tail 20
  orlop logs notes -c web --previous
  orlop logs notes -c web --since 10m --timestamps`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Namespace, req.Pod = a.namespace, args[0]
			if cmd.Flags().Changed("tail") && tail >= 0 {
				req.Tail = &tail
			}
			var err error
			if req.Since, err = since(cmd, from); err != nil {
				return err
			}
			stream, err := a.client().pods.Logs(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				if _, err := cmd.OutOrStdout().Write(stream.Msg().Data); err != nil {
					return err
				}
			}
			return stream.Err()
		},
		ValidArgsFunction: a.completePods,
	}
	f := cmd.Flags()
	f.StringVarP(&req.Container, "container", "c", "", "which container; needed if there are several")
	f.BoolVarP(&req.Follow, "follow", "f", false, "go on with what is written from now")
	f.BoolVarP(&req.Previous, "previous", "p", false, "of the container before the last restart")
	f.Int64Var(&tail, "tail", -1, "only so many last lines (-1: all)")
	f.StringVar(&from, "since", "", "only what is younger than a duration (10m) or a time (RFC 3339)")
	f.BoolVar(&req.Timestamps, "timestamps", false, "put the time before each line")
	return cmd
}
