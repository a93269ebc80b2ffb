// Makes a call that outlives who makes it: bin/later text/upper hello
//
// The broker stores the call and makes it as soon as the service is served; caller, responder and broker may come and go
// meanwhile. bin/later REQUEST_ID waits for the reply to one that was made before.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/stafett-examples/client"
	pb "example.com/stafett-examples/stafett/v1"
)

// How long one answer to AwaitReply may take.
const poll = 30 * time.Second

// store stores a call, and returns its id.
func store(calls pb.CallServiceClient, service, text string) string {
	answer, err := calls.CallAsync(context.Background(), &pb.CallAsyncRequest{
		Service: service,
		Request: &pb.Message{Payload: []byte(text)},
		Timeout: durationpb.New(client.Timeout()),
		// If its responder is lost, or the broker ends while one has it, it is made again.
		Idempotent: true,
	})
	if err != nil {
		client.Fail(err)
	}
	fmt.Printf("stored %s\n", answer.RequestId)
	return answer.RequestId
}

// waitFor returns the reply, which may be an error: there is one in any case, at the latest when its time is over.
func waitFor(calls pb.CallServiceClient, requestID string) *pb.Reply {
	for {
		answer, err := calls.AwaitReply(context.Background(), &pb.AwaitReplyRequest{
			RequestId: requestID,
			Wait:      durationpb.New(poll),
		})
		if err != nil {
			client.Fail(err)
		}
		if answer.Done {
			return answer.Reply
		}
	}
}

func main() {
	args := client.Args("SERVICE|REQUEST_ID")
	conn := client.Connect()
	defer conn.Close()
	calls := pb.NewCallServiceClient(conn)
	requestID := args[0]
	if len(args) > 1 {
		requestID = store(calls, args[0], args[1])
	}
	reply := waitFor(calls, requestID)
	if reply.Error != nil {
		fmt.Fprintln(os.Stderr, reply.Error.Message)
		os.Exit(1)
	}
	fmt.Printf("%s (from %s)\n", reply.Message.Payload, reply.ResponderId)
}
