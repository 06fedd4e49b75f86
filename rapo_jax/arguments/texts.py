"""What `rapo --help` and `rapo VERB --help` say."""

ABOUT = """\
Train a language model on preferences with scores so that it answers at the
quality it is asked for, and export it as a Hugging Face checkpoint that asks
for the best by itself.

  rapo relabel  CONFIG --out FILE        scored pairs -> goal-conditioned pairs
  rapo train    CONFIG                   train; the same command resumes
  rapo export   RUN_DIR OUT_DIR          write a Hugging Face directory
  rapo generate MODEL_DIR --prompts FILE --out FILE
                                         answer a file of prompts
  rapo answers  MODEL_DIR --benchmark NAME --out FILE
                                         answer AlpacaEval, MT-Bench, Arena-Hard
  rapo score    CONFIG --model DIR --out FILE
                                         score responses, for data.rewards
  rapo round    CONFIG [--rounds N]      sample, score, train, export, again
  rapo evaluate CONFIG --model DIR --out DIR
                                         does it follow the goals it is asked for?
  rapo report   PATH [PATH ...] -o FILE.html
                                         runs and results as one page
  rapo plan     CONFIG --topology v5e:4x4
                                         memory and time on other hardware
  rapo keys     [PREFIX]                 list the configuration's keys
"""

OVERRIDES = """\
CONFIG is a YAML file (examples in configs/). Any key can be overridden:

  model.path=DIR_OR_HUB_ID      data.path=FILE_OR_HUB_ID
  run_dir=runs/mine             data.eval_path=FILE_OR_HUB_ID
  objective.beta=0.1            optimizer.learning_rate=1e-6
  train.batch_size=64           train.max_steps=100
  relabel.goals=[]              plain baseline, no goals
  relabel.goals=[chosen]        goals from chosen responses only
  mesh.fsdp=8 mesh.tensor=1     how the model is sharded
  data.chat_template=chatml     for a tokenizer without one
  lora.rank=16                  train adapters over frozen weights
"""

RELABEL_MORE = """\
Writes pairs, labelled or single responses, whichever the objective compares,
in the formats that TRL reads. A report (numbers and a picture) is written
beside FILE, and scale.json if scores were mapped.

"""
TRAIN_MORE = """
The run directory holds config.yaml, data_report.json (and .png), metrics.jsonl,
tensorboard/ and checkpoints/. Ctrl-C saves a checkpoint and exits with 75. Run
the same command again, also after a crash, and it continues from the last
checkpoint with the metrics it would have had.

train.sample_every=N has held-out prompts answered at low, middle and high goals
every N steps (samples.jsonl). train.stop_on=eval_loss ends a run whose held-out
loss stops falling (rapo keys train).
"""
EXPORT_MORE = """\
Writes safetensors in the dtype of the starting model, config, generation
config, tokenizer and model card, then reads them back and compares every weight.
The chat template carries the goal, so anyone who applies it gets answers of
the highest score. LoRA adapters are merged into the weights; --adapter writes
them alone, in float32, as peft reads them.
"""
GENERATE_MORE = """\
Greedy by default. For a directory that rapo exported, --goal replaces the goal
that its chat template asks for. Of a run directory, also of a run that goes on,
the newest checkpoint answers as its export would.

Columns goal, temperature, top_p, top_k, min_p, repetition_penalty, stop,
max_new_tokens and seed of a row hold for that row, unless the option of that
name is given. The repetition penalty comes first, then temperature, top-k, top-p
and min-p, as in transformers. Log-probabilities are the model's own, before
these (a server tells its own). All columns of FILE are kept
(dates as ISO 8601, decimals as text, bytes in base64); one that has the name of
a column of the answers and says something else is kept as input_NAME.

Answers are kept in OUT.partial as they end. Ctrl-C exits with 75; the same
command goes on, also after a crash, and gives the answers it would have given.

With --engine URL, a server of the same model answers (vLLM, SGLang, any that is
OpenAI-compatible); of MODEL_DIR only config and tokenizer are read, for goals and
prompts. Prompts are sent as token ids, which leaves the server no choice of goal or
template; --engine-sends text or chat is for servers that take no ids. What the
server says it read is compared. It is asked again where it errs, and waited for
where it is restarted; its key comes from the environment and is never printed.
"""
ANSWERS_MORE = """\
  alpaca_eval   805 instructions; a list of {instruction, output, generator}
  mt_bench      80 questions of two turns, the second of which sees the first
                answer; temperatures by category, as in FastChat
  arena_hard    500 questions of version 0.1, or with --input 750 of 2.0

The highest goal is asked for, in every turn; --goal asks for another. Without
--input the published questions are fetched from the hub; where that cannot be
reached, the message says which file to fetch. Answers are drawn as by
`rapo generate`, by our own engine or by a server, and kept in OUT.partial as they
end: Ctrl-C exits with 75, and the same command goes on, also after a crash.

Beside FILE, NAME.about.json records the goal, the sampling and the lengths. The
last lines printed are the commands of the benchmark's own judge, and of
`rapo report`, which shows its verdicts with 95 % intervals. MT-Bench and Arena-Hard
call a model as its file is called.
"""
SCORE_MORE = """\
Without --scorer, a sequence classifier with one label gives its scores; a
language model gives its implicit rewards, objective.beta * (log pi - log pi_ref).
Responses are scored without a goal, in the chat template of CONFIG or else of
the reward or reference model; where the scored model has another one, a line
says so. Ctrl-C saves the scores so far and exits with 75; the same command
continues.

  python:MODULE:FUNCTION   function(prompts, responses) gives rewards, or
      (rewards, attributes): prompts[i] is a list of {"role", "content"},
      responses[i] a list of texts, rewards[i] as many numbers, attributes[i]
      as many {name: number}; it is called with at most 8 rows
  command:PROGRAM   reads lines like
      {"row": 3, "prompt": [{"role": ..., "content": ...}], "responses": [...]}
      and writes, in any order, lines like
      {"row": 3, "rewards": [0.2, 1.7], "attributes": [{...}, {...}]}

  judge   a language model behind --judge-url rates each response from 1 to 10, in
      the whole (the reward) and in four aspects (attributes). With
      --judge-compare it compares every two, in both orders, and a reward is the
      share won: of use within a row only. What is asked and what it cost is said;
      replies are kept in --judge-cache, and nothing is paid for twice

These three keep each row as soon as it is answered (a function's, when its call
returns; a program's last, when it ends). Ctrl-C exits with 130; the same command
asks for the others. They get texts: rows with calls of tools are refused.
"""
EVALUATE_MORE = """\
  likelihood   is a response likeliest when asked for its reward, and does the
               likelier of two change with the goal?
  unlearning   what chosen and rejected responses lost or gained, against the
               first model
  preference   accuracy, margin and calibration of the implicit reward, by the
               side whose reward is the goal
  goals        answers at every goal, scored: do scores follow goals, how far are
               they off, what else moves, what does the same number of tokens give
               without goals (best of n)?
  frontier     what score is reached at what KL to the reference, over models,
               checkpoints and goals, beside best of n

The first three generate nothing: they read the log-probabilities of scored pairs
under no goal, a grid of goals, their own rewards and the highest goal. Pairs are
the held-out ones of CONFIG (data.eval_path or data.eval_fraction), else all of
data.path; a run's config.yaml will do.

  rapo evaluate MODEL [MODEL ...] --suite goals --scorer NAME --out DIR

asks every model for --goals, or for its own scale from the lowest to the highest,
with the engines of `rapo generate` and the scorers of `rapo score`; with two
--scorer, also how far they agree. A model without goals is named with --base: it
answers as it is, and with the goal in its prompt.

Numbers carry 95 % bootstrap intervals over prompts. OUT holds results.json, .csv
and .txt, a figure for each suite, of goals also answers.jsonl for the slider of
`rapo report`, and what was computed: the same command goes on after an
interruption, and a further model, goal, scorer or suite costs only itself.
"""
ROUND_MORE = """
A round samples rounds.num_samples responses to every prompt of rounds.prompts,
has rounds.scorer score them, trains on the best and the worst of each (as
data.pairs and relabel say), exports, and judges the model on held-out prompts.
The next round begins from the model of the last.

CONFIG is as for `rapo train`, with the section `rounds` (rapo keys rounds) in the
place of data.path. Everything stands in run_dir: round-1/model is a Hugging Face
directory, round-1/run a run, round-1/responses.jsonl and scores.jsonl its data,
rounds.json the table. Every stage can also be run by hand, elsewhere, with
`rapo generate`, `score`, `train` and `export`, if it writes the same file.

Ctrl-C exits with 75; the same command goes on, also after a crash. A larger
--rounds goes on after the last one.
"""
REPORT_MORE = """\
A PATH is a run directory, a directory of `rapo evaluate`, a goal sweep (its
sweep.json), an answer file of `rapo generate`, or the verdicts of a benchmark's judge
(AlpacaEval's annotations.json, MT-Bench's JUDGE_single.jsonl, Arena-Hard's
model_judgment/JUDGE/NAME.jsonl). NAME=PATH gives it a name;
answer files of one NAME are one model's, whatever their rows call it (where the
rows of a file name several models, the NAME stands before each). Where a prompt was answered at several
goals, a slider goes from the lowest to the highest.

The page is one file: it opens from disk and loads nothing. Several runs are
compared: what differs in their configurations, and their curves. Nothing is
computed anew, so it takes seconds, also for a run that goes on.

"""
PLAN_MORE = """
Compiles the training step from shapes alone. It reads no weights, and the data
only if it is there (otherwise it assumes lengths like UltraFeedback's). TPUs
need libtpu (the extra "tpu"), GPUs the CUDA plugin (the extra "plan-gpu");
neither needs the hardware. Exits with 1 if the step does not fit, after
compiling the nearest change that does.

--fastest estimates thousands of settings (mesh, model.remat, rows, cached
reference, first moment's dtype) and compiles the most promising, until none of
the others could be faster. It prints the overrides for `rapo train`, and is
never slower than CONFIG. Ctrl-C prints what was found so far.
"""
KEYS_MORE = """\
Prints each key with its default, its type, what it affects, the verbs that read
it, and its meaning. A run resumes if no key has changed but those that "may
change on resume". `rapo keys objective.dpo` prints a loss with its options and
its paper, `rapo keys objective.beta` every loss that reads that option.
"""
