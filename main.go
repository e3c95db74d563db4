// Command curfew puts a maximum lifetime on TCP connections.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"curfew/ctpolicy"
	"curfew/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	code := command.Run(ctx, os.Args[1:], &command.Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Reload: reload, Clock: ctpolicy.SystemClock{},
	})
	stop()
	os.Exit(code)
}
