"""The columns of every CSV table of `figures/data`, by the notebook that writes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schema:
    """Columns of one table, in file order."""

    notebook: str
    """Number of the notebook that writes it."""
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Columns whose cells may be empty."""
    fractions: tuple[str, ...] = ()
    """Columns that must lie in 0..1."""


def _schema(notebook: str, columns: str, optional: str = "", fractions: str = "") -> Schema:
    return Schema(notebook, tuple(columns.split(",")), tuple(optional.split()), tuple(fractions.split()))


SCHEMAS: dict[str, Schema] = {
    "world_gates": _schema("00", "gate,value,low,high,met,n,unit,note", "low high n unit note"),
    "pass_rates": _schema(
        "00", "bin_low,bin_high,share_world,share_reference,n_world,n_reference", "", "share_world share_reference"
    ),
    "difficulty_vs_pass_rate": _schema("00", "sample_id,domain,difficulty,pass_rate,attempts", "", "pass_rate"),
    "sae_quality": _schema("01", "encoder,quantity,value,low,high,met,n_tokens", "low high met n_tokens"),
    "sae_map": _schema("02", "sample_id,x,y,domain,cluster,difficulty", "difficulty"),
    "representation": _schema(
        "02", "choice,option,target,metric,value,ci_low,ci_high,n_train,n_test,shared_with_default", "", "shared_with_default"
    ),
    "world_probes": _schema("03", "dataset,target,metric,features,value,ci_low,ci_high,n_train,n_test", "value ci_low ci_high"),
    "ladder_saes": _schema("03", "model,features,seed,explained_variance,l0,dead_share,n_tokens"),
    "real_overlap": _schema("03", "dataset,evaluation_set,n,n_overlap"),
    "probe_ladder": _schema("03", "dataset,target,metric,features,value,ci_low,ci_high,n_train,n_test", "value ci_low ci_high"),
    "calibration": _schema("04", "score,bin,n,predicted_mean,label_mean,ci_low,ci_high", "ci_low ci_high"),
    "cluster_topics": _schema("04", "cluster,domain,n"),
    "cluster_agreement": _schema(
        "04", "level,n,purity,nmi,ari,paper_purity,paper_nmi,paper_ari", "paper_purity paper_nmi paper_ari", "purity"
    ),
    "cluster_summary": _schema(
        "04",
        "cluster,n_pool,n_labelled,residual,shrinkage,difficulty_mean,topic_entropy_bits,top_topic,top_share,"
        "prompt_words_mean,solution_words_mean",
        "difficulty_mean topic_entropy_bits top_topic top_share prompt_words_mean solution_words_mean",
        "shrinkage top_share",
    ),
    "cluster_audit": _schema(
        "04",
        "cluster,n,label,top_topics,topic_entropy_bits,difficulty_mean,difficulty_q25,difficulty_median,difficulty_q75,n_difficulty,"
        "prompt_words_mean,solution_words_mean,representatives,top_latents",
        "top_topics difficulty_mean difficulty_q25 difficulty_median difficulty_q75 top_latents",
    ),
    "feature_groups": _schema(
        "04",
        "group,n_features,gain_share,ci_low,ci_high,top_20,top_100,paper_top_20,paper_top_100,n",
        "gain_share ci_low ci_high",
        "gain_share ci_low ci_high",
    ),
    "top_latents": _schema(
        "04",
        "feature,block,latent,gain,topic,necessity,sufficiency,base_rate,lift,frc,ci_low,ci_high,control,n,n_active,n_topic,"
        "example_id,example_text",
        "topic necessity sufficiency base_rate lift frc ci_low ci_high control example_text",
        "gain necessity sufficiency base_rate frc ci_low ci_high control",
    ),
    "filter": _schema(
        "05",
        "rule,kept,n_pool,target_kept,purity,recall,paper_purity,paper_recall",
        "purity recall paper_purity paper_recall",
        "purity recall paper_purity paper_recall",
    ),
    "filter_scores": _schema("05", "source,bin_low,bin_high,share,n", "", "share"),
    "filter_flaws": _schema(
        "05", "dataset,pool,flaw,score,metric,value,ci_low,ci_high,n_flawed,n_sound", "ci_low ci_high", "value"
    ),
    "filter_selfreg": _schema("05", "dataset,target,variant,metric,value,ci_low,ci_high,n_test", "ci_low ci_high"),
    "cluster_stability": _schema("04", "varied,pairs,ari_mean,ari_low,ari_high,n"),
    "real_counts": _schema("04", "part,source,what,n"),
    "real_clusters": _schema("04", "dataset,features,quantity,value,ci_low,ci_high,paper_value,n", "ci_low ci_high paper_value"),
    "real_cluster_audit": _schema(
        "04",
        "cluster,n,label,top_topics,topic_entropy_bits,difficulty_mean,difficulty_q25,difficulty_median,difficulty_q75,n_difficulty,"
        "prompt_words_mean,solution_words_mean,representatives,top_latents",
        "top_topics difficulty_mean difficulty_q25 difficulty_median difficulty_q75 top_latents",
    ),
    "real_feature_groups": _schema(
        "04",
        "group,n_features,gain_share,ci_low,ci_high,top_20,top_100,paper_top_20,paper_top_100,n",
        "gain_share ci_low ci_high",
        "gain_share ci_low ci_high",
    ),
    "real_top_latents": _schema(
        "04",
        "feature,block,latent,gain,topic,necessity,sufficiency,base_rate,lift,frc,ci_low,ci_high,control,n,n_active,n_topic,"
        "example_id,example_text",
        "topic necessity sufficiency base_rate lift frc ci_low ci_high control example_text",
        "gain necessity sufficiency base_rate frc ci_low ci_high control",
    ),
    "real_filter": _schema(
        "05",
        "features,rule,kept,n_pool,target_kept,purity,recall,paper_purity,paper_recall",
        "purity paper_purity paper_recall",
        "purity recall paper_purity paper_recall",
    ),
    "real_separation": _schema(
        "05", "dataset,metric,features,value,ci_low,ci_high,paper_value,n_train,n_test", "paper_value", "value ci_low ci_high"
    ),
    "real_flaws": _schema(
        "05", "dataset,pool,flaw,score,metric,value,ci_low,ci_high,n_flawed,n_sound", "ci_low ci_high", "value"
    ),
    "real_selfreg": _schema("05", "dataset,target,variant,metric,value,ci_low,ci_high,n_test", "ci_low ci_high"),
    "label_curve": _schema("04", "features,n_labels,value,ci_low,ci_high,n_subsets,n_test"),
    "plan_sensitivity": _schema("06", "varied,setting,default,share_moved,mean_step_shift,n", "", "share_moved"),
    "batch_composition": _schema(
        "06",
        "order,step,dominant_cluster,dominant_share,n_clusters,mean_ranking_score,mean_sequence_words",
        "mean_sequence_words",
        "dominant_share",
    ),
    "inbatch_diversity": _schema("06", "order,swapped_per_batch,space,value,ci_low,ci_high,n_batches", "ci_low ci_high"),
    "sample_audit": _schema(
        "06", "sample_id,part,item,value,low,high,cluster,slot,n,note", "value low high cluster slot n note"
    ),
    "gradient_coherence": _schema("06", "grouping,level,relation,value,ci_low,ci_high,n,n_zero", "value ci_low ci_high"),
    "gradient_distance": _schema("06", "space,measure,spearman,ci_low,ci_high,n_pairs,n_prompts", "spearman ci_low ci_high"),
    "mixing_theory": _schema(
        "06",
        "cluster_c,cluster_d,n_c,n_d,bias2,variance,A,A_low,A_high,C,C_low,C_high,rho_star,ci_low,ci_high,rho_h,mse_change_at_h,"
        "change_low,change_high,random_change,random_low,random_high",
        "A A_low A_high C C_low C_high rho_star ci_low ci_high change_low change_high random_low random_high",
        "rho_star",
    ),
    "mixing_curve": _schema("06", "cluster_c,rho,mse_change,ci_low,ci_high,n_prompts", "ci_low ci_high", "rho"),
    "training_curves": _schema(
        "07",
        "arm,seed,step,reward_mean,zero_variance_share,entropy,grad_norm,completion_tokens",
        "entropy grad_norm completion_tokens",
        "zero_variance_share",
    ),
    "learning_curves": _schema("08", "arm,seed,step,eval_set,metric,value,n_problems,n_samples", "", "value"),
    "paired_difference": _schema(
        "08",
        "eval_set,metric,difference,ci_low,ci_high,n_seeds,n_problems,minimum_detectable_effect",
        "ci_low ci_high n_problems minimum_detectable_effect",
    ),
    "steps_to_target": _schema("08", "eval_set,target,arm,seed,steps", "steps", "target"),
    "claims": _schema(
        "08",
        "claim,paper_value,our_value,ci_low,ci_high,n_seeds,verdict,notebook,figure,command",
        "paper_value our_value ci_low ci_high notebook figure command",
    ),
    "own_clusters": _schema(
        "10",
        "cluster,n,share,planned,median_length,mean_difficulty,labels,top_topic,topic_share,terms,typical",
        "mean_difficulty top_topic topic_share terms",
        "share topic_share",
    ),
    "study_pilot": _schema("08", "part,arm,learning_rate,seed,outcome"),
    "study_runs": _schema(
        "08",
        "arm,seed,step,update,rollouts,problems,completions,avg_easy_a,avg_easy_b,avg_hard,avg_hardest,avg_mid_a,"
        "avg_mid_b,mean_avg,mean_with_pass,mean_without_pass_set,pass_hardest,zero_variance_share,entropy,"
        "grad_norm",
        "zero_variance_share entropy grad_norm",
    ),
    "study_summary": _schema(
        "08",
        "arm,title,group,n_seeds,outcome,outcome_sd,difference,ci_low,ci_high,"
        "holm_low,holm_high,detectable,final_avg_easy_a,final_avg_easy_b,final_avg_hard,final_avg_hardest,final_avg_mid_a,"
        "final_avg_mid_b,final_mean_avg,final_mean_with_pass,final_mean_without_pass_set,final_pass_hardest,"
        "steps_to_target,targets_reached,area,zero_variance_share,entropy,grad_norm,updates,prompts,"
        "distinct_prompts,rollouts,rollouts_used,tokens,training_s,evaluation_s,prep_labels,prep_rollouts,prep_encoded,"
        "prep_forward",
        "outcome_sd difference ci_low ci_high holm_low holm_high detectable",
    ),
    "study_comparisons": _schema(
        "08",
        "family,metric,arm,baseline,n_seeds,difference,ci_low,ci_high,holm_low,holm_high,p_value,p_holm,p_small,detectable,claim,"
        "paper_value",
        "ci_low ci_high holm_low holm_high detectable claim paper_value",
    ),
    "study_paper_tables": _schema(
        "08", "table,arm,benchmark,eval_set,paper_value,our_value,ci_low,ci_high,n_seeds", "our_value ci_low ci_high"
    ),
    "preparation_cost": _schema("08", "part,prompts,rollouts,encode_s,rollouts_s,saved"),
    "study_final": _schema("08", "arm,seed,eval_set,avg_at_k,pass_at_k"),
    "study_batch": _schema("08", "reading,comparison,prompts_per_step,difference,ci_low,ci_high,n_seeds", "ci_low ci_high"),
    "study_mixing": _schema(
        "08",
        "arm,swapped_per_batch,outcome,difference,ci_low,ci_high,n_seeds,steps_to_target,diversity_2d,diversity_full,"
        "paper_swapped,paper_difference,paper_steps,paper_diversity",
        "ci_low ci_high",
    ),
    "study_plans": _schema(
        "08",
        "arm,prompts_per_step,swapped_per_batch,batches,swapped_batches,swapped_batches_second_half,swapped_samples,label_rho,"
        "largest_cluster,plan_hash",
    ),
    "study_targets": _schema("08", "arm,seed,eval_set,target,steps,reached"),
    "study_budget": _schema("08", "arm,seed,updates,prompts,distinct_prompts,rollouts,rollouts_used,tokens,counted"),
    "study_provenance": _schema(
        "08",
        "run,arm,seed,config_hash,learning_rate,commit,cpu,threads,versions,training_s,evaluation_s,"
        "peak_memory_mb",
    ),
}
"""Every table of `figures/data`, by name."""
