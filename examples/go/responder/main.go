// Serves a service that makes text upper case: bin/responder text/upper
//
// Requests are answered side by side, in any order. Ctrl-c finishes what is in hand first.
package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/stafett-examples/client"
	pb "example.com/stafett-examples/stafett/v1"
)

// upper is the service itself; ctx ends when nobody waits for the answer any more.
func upper(ctx context.Context, text string) (string, error) {
	if text == "" {
		return "", status.Error(codes.InvalidArgument, "there is no text")
	}
	return strings.ToUpper(text), ctx.Err()
}

// answer answers one request.
func answer(ctx context.Context, request *pb.IncomingRequest) *pb.ServeRequest {
	text := string(request.Message.Payload)
	reply := &pb.ServeReply{RequestId: request.RequestId}
	if said, err := upper(ctx, text); err != nil {
		fmt.Println("refused:", err)
		reply.Error = status.Convert(err).Proto()
	} else {
		fmt.Println("answered", text)
		reply.Message = &pb.Message{Payload: []byte(said)}
	}
	replies := &pb.ServeReplies{Replies: []*pb.ServeReply{reply}}
	return &pb.ServeRequest{Action: &pb.ServeRequest_Replies{Replies: replies}}
}

// serve is one stream. It returns how long to wait before the next one.
func serve(stop context.Context, calls pb.CallServiceClient, service string) (time.Duration, error) {
	// The end of this context ends the stream and what sends on it; stop only asks to drain.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := calls.Serve(ctx)
	if err != nil {
		return 0, err
	}
	opening := &pb.ServeOpen{Service: service, MaxConcurrentRequests: 16}
	open := &pb.ServeRequest{Action: &pb.ServeRequest_Open{Open: opening}}
	drain := &pb.ServeRequest{Action: &pb.ServeRequest_Drain{Drain: &pb.Drain{}}}
	outgoing := client.Outgoing(ctx, stop, stream.Send, open, drain)
	var inHand sync.Map
	pause := time.Second
	for {
		event, err := stream.Recv()
		if err == io.EOF {
			return pause, nil
		}
		if err != nil {
			return 0, err
		}
		switch event := event.Event.(type) {
		case *pb.ServeResponse_Opened:
			fmt.Println("serving", service, "as", event.Opened.ResponderId)
		case *pb.ServeResponse_Requests:
			for _, request := range event.Requests.Requests {
				ctx, cancel := context.WithCancel(ctx)
				inHand.Store(request.RequestId, cancel)
				go func(request *pb.IncomingRequest) {
					defer cancel()
					outgoing(answer(ctx, request))
					inHand.Delete(request.RequestId)
				}(request)
			}
		case *pb.ServeResponse_Cancelled:
			for _, id := range event.Cancelled.RequestIds {
				if cancel, ok := inHand.Load(id); ok {
					cancel.(context.CancelFunc)()
				}
			}
		case *pb.ServeResponse_Closing:
			pause = client.PauseOf(event.Closing)
		}
	}
}

func main() {
	args := client.Args("SERVICE")
	conn := client.Connect()
	defer conn.Close()
	calls := pb.NewCallServiceClient(conn)
	client.KeepOpen(func(stop context.Context) (time.Duration, error) { return serve(stop, calls, args[0]) })
}
