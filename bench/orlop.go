package main

import (
	"context"
	"time"
)

type orlop struct{ dir, registry string }

func (*orlop) Name() string                            { return "orlop" }
func (*orlop) Start(context.Context) error             { return nil }
func (*orlop) Stop()                                   {}
func (*orlop) Group() string                           { return "/" }
func (*orlop) StartPod(context.Context, string) error  { return nil }
func (*orlop) RemovePod(context.Context, string) error { return nil }
func (*orlop) Pull(context.Context, string) error      { return nil }
func (*orlop) Drop(context.Context, string) error      { return nil }
func (*orlop) Own(int, string) bool                    { return false }

type orlopStarter struct{ dir, root string }

func (*orlopStarter) Name() string                { return "orlop" }
func (*orlopStarter) Start(context.Context) error { return nil }
func (*orlopStarter) Stop()                       {}
func (*orlopStarter) Group() string               { return "/" }
func (*orlopStarter) Run(context.Context, string) (a, b time.Duration, err error) {
	return 1, 1, nil
}
