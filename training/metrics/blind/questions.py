"""What people are asked about two videos: the papers' questions, in one place for page, votes and count."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """ask: what the page asks. needs: what a pair must have for it, "prompt" or "picture"; None = nothing."""

    ask: str
    needs: str | None = None


# UniVG (2401.09084): OL, VQ, MQ, TF and IF. Show-1 (2309.15818) asks for quality, motion and text.
QUESTIONS = {
    "overall": Question("Which video is better, all in all?"),
    "quality": Question("Which one looks better: clear, rich in detail, without errors?"),
    "motion": Question("Which one moves better: naturally, smoothly and enough?"),
    "text": Question("Which one shows better what the words say?", "prompt"),
    "picture": Question("Which one is truer to the picture?", "picture"),
}
SAME = "same"
