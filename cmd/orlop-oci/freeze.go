package main

import (
	"context"

	"github.com/orlop-io/orlop/internal/platform/container"
)

func pauseCommand(f *flags) func(*app, []string) error {
	return onContainer(func(ctx context.Context, c *container.Container) error { return c.Pause(ctx) })
}

func resumeCommand(f *flags) func(*app, []string) error {
	return onContainer(func(ctx context.Context, c *container.Container) error { return c.Resume(ctx) })
}

func onContainer(do func(context.Context, *container.Container) error) func(*app, []string) error {
	return func(a *app, args []string) error {
		ctx, stop := interruptible()
		defer stop()
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		return do(ctx, c)
	}
}
