// Works on the messages of a queue: bin/worker jobs
//
// A message is acknowledged when its work is done, and given back when it fails. Ctrl-c finishes what is in hand first.
// Work that takes longer than the queue's lease, 30 s by default, would have to extend it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/stafett-examples/client"
	pb "example.com/stafett-examples/stafett/v1"
)

// work is the work itself.
func work(text string) error {
	if strings.HasPrefix(text, "bad") {
		return errors.New("a bad job")
	}
	fmt.Println("done:", text)
	return nil
}

// settle does the work, and says what became of the message.
func settle(leased *pb.LeasedMessage) *pb.ConsumeRequest {
	text := string(leased.Message.Payload)
	// The number of a delivery ascends on its stream: it serves as the number of the frame that settles it.
	which := &pb.AckBatch{AckId: leased.DeliveryId, DeliveryIds: []uint64{leased.DeliveryId}}
	if err := work(text); err != nil {
		fmt.Printf("failed: %s (attempt %d): %v\n", text, leased.DeliveryAttempt, err)
		// Comes again after a second, or goes to the dead letter queue when it has failed too often.
		nack := &pb.NackBatch{Which: which, Kind: pb.NackKind_NACK_KIND_FAILED, Delay: durationpb.New(time.Second)}
		return &pb.ConsumeRequest{Action: &pb.ConsumeRequest_Nack{Nack: nack}}
	}
	return &pb.ConsumeRequest{Action: &pb.ConsumeRequest_Ack{Ack: which}}
}

// consume is one stream. It returns how long to wait before the next one.
func consume(stop context.Context, queues pb.QueueServiceClient, queue string) (time.Duration, error) {
	// The end of this context ends the stream and what sends on it; stop only asks to drain.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := queues.Consume(ctx)
	if err != nil {
		return 0, err
	}
	opening := &pb.ConsumeOpen{Queue: queue, Window: &pb.Window{MaxOutstandingMessages: 10}}
	open := &pb.ConsumeRequest{Action: &pb.ConsumeRequest_Open{Open: opening}}
	drain := &pb.ConsumeRequest{Action: &pb.ConsumeRequest_Drain{Drain: &pb.Drain{}}}
	outgoing := client.Outgoing(ctx, stop, stream.Send, open, drain)
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
		case *pb.ConsumeResponse_Opened:
			fmt.Println("working on", queue)
		case *pb.ConsumeResponse_Messages:
			for _, leased := range event.Messages.Messages {
				outgoing(settle(leased))
			}
		case *pb.ConsumeResponse_Results:
			for _, failure := range event.Results.Failures {
				fmt.Fprintln(os.Stderr, "not settled, and comes again:", failure.Error.Message)
			}
		case *pb.ConsumeResponse_Closing:
			pause = client.PauseOf(event.Closing)
		}
	}
}

func main() {
	args := client.Args("QUEUE")
	conn := client.Connect()
	defer conn.Close()
	queues := pb.NewQueueServiceClient(conn)
	client.KeepOpen(func(stop context.Context) (time.Duration, error) { return consume(stop, queues, args[0]) })
}
