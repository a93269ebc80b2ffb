// Package client is what the examples share: arguments, a connection, and streams that are opened again when the broker
// was away.
package client

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "example.com/stafett-examples/stafett/v1"
)

var (
	server  = flag.String("server", "127.0.0.1:50051", "HOST:PORT of the broker")
	timeout = flag.Float64("timeout", 5, "longest wait for an answer, in `seconds`")
)

// Args reads the command line: flags, then at least as many words as are named.
func Args(names ...string) []string {
	flag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: %s [flags] %v\n", path.Base(os.Args[0]), names)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() < len(names) {
		flag.Usage()
		os.Exit(2)
	}
	return flag.Args()
}

// Connect makes a connection to --server.
func Connect() *grpc.ClientConn {
	// A connection that is silently gone is noticed after half a minute.
	alive := keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}
	// WithInsecure and Dial rather than their successors: Debian 12 has gRPC 1.33.
	conn, err := grpc.Dial(*server, grpc.WithInsecure(), grpc.WithKeepaliveParams(alive))
	if err != nil {
		Fail(err)
	}
	return conn
}

// Timeout is --timeout.
func Timeout() time.Duration {
	return time.Duration(*timeout * float64(time.Second))
}

// Deadline is the context of one RPC: --timeout from now.
func Deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), Timeout())
}

// Fail says what went wrong, with the broker's reason where it gives one, as NO_RESPONDERS; ends with code 1.
func Fail(err error) {
	said := status.Convert(err)
	reason := said.Code().String()
	for _, detail := range said.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.Reason
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", reason, said.Message())
	os.Exit(1)
}

// KeepOpen runs a stream until ctrl-c or SIGTERM end the context. It runs again, after the pause that it returns, when
// the broker has closed it or cannot be reached.
func KeepOpen(stream func(stop context.Context) (time.Duration, error)) {
	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	for stop.Err() == nil {
		pause, err := stream(stop)
		if err != nil {
			if status.Code(err) != codes.Unavailable {
				Fail(err)
			}
			fmt.Fprintf(os.Stderr, "trying again: %v\n", err)
			pause = time.Second
		}
		select {
		case <-time.After(pause):
		case <-stop.Done():
		}
	}
	fmt.Println("stopped")
}

// PauseOf is how long the broker asks to wait before the stream is opened again.
func PauseOf(closing *pb.StreamClosing) time.Duration {
	if closing.ReconnectAfter == nil {
		return time.Second
	}
	return closing.ReconnectAfter.AsDuration()
}

// Outgoing sends on a stream until ctx ends, which is not safe to do from several goroutines: open first, drain when stop
// ends, and what is given to the function that it returns. What is sent on a broken stream is lost; Recv says why it broke.
func Outgoing[F any](ctx, stop context.Context, send func(F) error, open, drain F) func(F) {
	// Before anything else: stop may have ended while the stream waited for its connection.
	_ = send(open)
	frames := make(chan F)
	go func() {
		stopped := stop.Done()
		for {
			select {
			case frame := <-frames:
				_ = send(frame)
			case <-stopped:
				_ = send(drain)
				stopped = nil
			case <-ctx.Done():
				return
			}
		}
	}()
	return func(frame F) {
		select {
		case frames <- frame:
		case <-ctx.Done():
		}
	}
}
